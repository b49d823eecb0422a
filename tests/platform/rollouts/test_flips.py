"""The flip inspector: the worst answers first, and where the versions part, in words."""

from pathlib import Path

import pytest
from penstock.db import Database
from penstock.registry.models import Deployment
from penstock.registry.tokenizer import ModelTokenizer
from penstock.rollouts import shadow
from penstock.rollouts.evidence import Evidence
from penstock.rollouts.flips import FlipDocument, Order, find_flips, flip_document, flips_of
from penstock.rollouts.policy import Policy, Shadow
from penstock.rollouts.services import start

from tests.factories import DEMO_MODEL
from tests.platform.replay.house import SURE, UNSURE, House
from tests.platform.rollouts.test_services import ANN

POLICY = Policy(offline=None, shadow=Shadow(sampling=1.0, free_running=0.0))


def tokenizer_of(_: Deployment) -> ModelTokenizer:
    return ModelTokenizer.from_folder(Path(DEMO_MODEL))


@pytest.fixture
def compared(database: Database) -> tuple[House, str, list[str]]:
    """Two answers: one on which the versions agree, and a later one on which they do not."""
    house = House.built(database)
    with database.transaction() as session:
        rollout_id = start(session, "tiny", "2", POLICY, ANN).id
    jobs, evidence = [], Evidence()
    for likely in (UNSURE, SURE):
        jobs.append(house.sampled(rollout_id))
        for serve in (False, True):
            if serve:
                house.score(house.champion)
                house.score(house.candidate, likely)
            with database.transaction() as session:
                evidence = shadow.gather(session, session.merge(house.rollout(rollout_id)), POLICY, evidence)
    return house, rollout_id, jobs


def test_the_worst_come_first_and_say_where_they_part(compared: tuple[House, str, list[str]]) -> None:
    house, rollout_id, (unlike, alike) = compared
    with house.database.transaction() as session:
        orders = {
            order: [flip.source.id for flip in find_flips(session, flips_of(rollout_id), order, 10)] for order in Order
        }
        (worst,) = find_flips(session, flips_of(rollout_id), Order.DIVERGENCE, 1)
        assert find_flips(session, flips_of("rol_other"), Order.NEWEST, 10) == []
    assert orders == {
        Order.DIVERGENCE: [unlike, alike],
        Order.DISAGREEMENT: [unlike, alike],
        Order.NEWEST: [alike, unlike],
    }
    document = FlipDocument.model_validate(flip_document(worst, tokenizer_of))
    tokenizer = tokenizer_of(worst.reference)
    assert (document.job, document.disagreement, document.prompt_end) == (unlike, 1.0, "hello there")
    assert document.parting is not None
    assert (document.parting.position, document.parting.before) == (0, "")
    assert document.parting.token.text == tokenizer.decode([5])
    assert document.parting.token.probability == UNSURE[5]
    assert document.parting.after == tokenizer.decode([6, 7])
    assert [each.text for each in document.parting.reference] == [tokenizer.spelled(token) for token in (5, 6, 7)]
    assert [each.token_id for each in document.parting.candidate] == [6, 5, 7]


def test_where_they_agree_nothing_parts(compared: tuple[House, str, list[str]]) -> None:
    house, rollout_id, (_, alike) = compared
    with house.database.transaction() as session:
        (newest,) = find_flips(session, flips_of(rollout_id), Order.NEWEST, 1)
    document = flip_document(newest, tokenizer_of)
    assert (document["job"], document["parting"], document["mean_kld"]) == (alike, None, 0)
