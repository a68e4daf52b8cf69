"""`python -m luq_gguf`."""

from luq_gguf.guard import main

main()
