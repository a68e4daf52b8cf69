"""`python -m luq_gguf`."""

from luq_gguf.cli import main

main()
