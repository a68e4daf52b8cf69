"""The YAML at the head of a model card (README.md), held against limits before gguf reads it.

YAML lets a few lines stand for billions (aliases of aliases, merged mappings, anchors within themselves): what it
would come to is counted on the parsed graph, without building it.
"""

from __future__ import annotations

from luq_gguf.checkpoint import Checkpoint
from luq_gguf.errors import CheckpointError
from luq_gguf.small_files import MIB, read_small

CARD = "README.md"
MAX_CARD = 8 * MIB
MAX_HEAD = MIB // 4
"""YAML is parsed at about 100 kB a second."""
MAX_NODES = 100_000
HINT = "repair the file or take it out of the folder"


def require_sane_card(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where the folder's model card is too large, no UTF-8, or stands for too much."""
    path = checkpoint.side_file(CARD)
    if path is None:
        return
    try:
        head = _head(read_small(path, MAX_CARD).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _broken(checkpoint, "it is not UTF-8") from error
    except OSError as error:
        raise _broken(checkpoint, error.strerror or str(error)) from error
    if len(head) > MAX_HEAD:
        raise _broken(checkpoint, f"its head has {len(head):,} characters, at most {MAX_HEAD:,} are read")
    if "&" in head and "*" in head and _expands(checkpoint, head):
        raise _broken(checkpoint, "its head stands for more than it says (aliases)")


def _head(text: str) -> str:
    lines = text.splitlines()
    if not lines or lines[0] != "---":
        return ""
    end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
    return "\n".join(lines[1:end]).replace("\t", "  ")


def _expands(checkpoint: Checkpoint, head: str) -> bool:
    """Whether the parsed graph, written out as a tree, has too many nodes or no end."""
    import yaml

    try:
        root = yaml.compose(head, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise _broken(checkpoint, str(error)) from error
    sizes: dict[int, int] = {}
    stack = [(root, False)]
    open_nodes: set[int] = set()
    while stack:
        node, done = stack.pop()
        children = _children(node)
        if done:
            open_nodes.discard(id(node))
            sizes[id(node)] = min(1 + sum(sizes[id(child)] for child in children), MAX_NODES + 1)
        elif id(node) in open_nodes:
            return True
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack += [(child, False) for child in children]
    return sizes[id(root)] > MAX_NODES


def _children(node: object) -> list[object]:
    value = getattr(node, "value", None)
    if not isinstance(value, list):
        return []
    return [part for item in value for part in (item if isinstance(item, tuple) else (item,))]


def _broken(checkpoint: Checkpoint, why: str) -> CheckpointError:
    return CheckpointError(f"cannot read the model card {checkpoint.folder / CARD}: {why}", hint=HINT)
