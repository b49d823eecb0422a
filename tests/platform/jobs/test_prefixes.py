"""How prompts begin, in 64 bits, and which beginnings a worker served last."""

from penstock.fairness.prefixes import RecentPrefixes, fingerprint


def test_a_fingerprint_is_of_the_beginning_and_of_its_tenant() -> None:
    long = {"prompt": "a" * 256 + "b"}
    assert fingerprint("ten_1", long) == fingerprint("ten_1", {"prompt": "a" * 256 + "c"})
    assert fingerprint("ten_1", long) != fingerprint("ten_1", {"prompt": "a" * 255 + "bb"})
    assert fingerprint("ten_1", long) != fingerprint("ten_2", long)
    system = {"role": "system", "content": "You are terse. " * 30}
    asked = [{"messages": [system, {"role": "user", "content": words}]} for words in ("one", "two")]
    assert fingerprint("ten_1", asked[0]) == fingerprint("ten_1", asked[1])
    assert fingerprint("ten_1", {"token_ids": [1] * 70}) == fingerprint("ten_1", {"token_ids": [1] * 64 + [2]})


def test_recent_prefixes_forget_the_oldest() -> None:
    recent = RecentPrefixes(most=2)
    for prefix in (1, 2, None, 1, 3):
        recent.note(prefix)
    assert recent.newest_first() == [3, 1]
