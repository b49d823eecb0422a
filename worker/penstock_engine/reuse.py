"""What of a generation's tokens need not run, and who is just computing more of it.

    tokens:  [ whole pages ................ | part of a page ........... | must run ]
               of the tree, read where        copied to the generation's
               they lie                       own first page

The part comes from a page of the tree, or from one that runs: its prompt ended in the middle of a page, which the tree,
of whole pages, cannot hold. Who begins with what another is computing in this very step waits for it (a follower), or,
where all its tokens are the same (a twin), shares even the logits: it is sampled beside the other, and runs no token.
"""

from collections.abc import Iterable
from typing import NamedTuple

from penstock_engine.batch import ScheduleBatch
from penstock_engine.page_allocator import NULL_PAGE
from penstock_engine.radix_cache import PrefixCache, TreeNode, common_len
from penstock_engine.request import Generation


class Prefix(NamedTuple):
    """`pages` of the tree down to `node`, then the first `part_len` tokens of `part_page`, which `holder` keeps."""

    node: TreeNode | None
    pages: list[int]
    holder: TreeNode | Generation | None = None
    part_page: int = NULL_PAGE
    part_len: int = 0  # less than a page

    def tokens(self, page_size: int) -> int:
        return len(self.pages) * page_size + self.part_len

    def without_part(self) -> "Prefix":
        return Prefix(self.node, self.pages)


def find_prefix(cache: PrefixCache, running: Iterable[Generation], generation: Generation, page_size: int) -> Prefix:
    """The longest beginning of `generation` that somebody has. Lock it before the next `evict`."""
    tokens = generation.reusable
    match = cache.match(generation.request.namespace, tokens)
    prefix = Prefix(match.node, match.pages)
    if match.partial is not None:
        prefix = Prefix(match.node, match.pages, match.partial, match.partial.pages[0], match.partial_len)
    if not cache.remembers or generation.scoring is not None:
        return prefix
    start = len(match.pages) * page_size
    rest = tokens[start : start + page_size - 1]
    for each in running:
        # Once published, its first own page stays its own until it leaves, and holds what it says.
        if each.published and each.node is match.node:
            shared = common_len(each.tokens[start : min(each.settled_len, start + page_size)], rest)
            if shared > prefix.part_len:
                prefix = Prefix(match.node, match.pages, each, each.pages[each.shared_pages], shared)
    return prefix


def leader_of(
    generation: Generation, running: Iterable[Generation], cached_len: int, page_size: int
) -> Generation | None:
    """Who is computing at least a page more of `generation`'s beginning than is cached."""
    until = cached_len + page_size
    wanted = generation.reusable[:until]
    if len(wanted) < until:
        return None
    namespace = generation.request.namespace
    for leader in running:
        if not leader.published and leader.request.namespace == namespace and leader.tokens[:until] == wanted:
            return leader
    return None


def twin_of(generation: Generation, batch: ScheduleBatch) -> Generation | None:
    """Who has the same tokens, to the last, and gets the logits of the last in this step."""
    if generation.scoring is not None:
        return None
    namespace = generation.request.namespace
    same = (each for each in batch.ending if each.tokens == generation.tokens)
    return next((each for each in same if each.request.namespace == namespace), None)
