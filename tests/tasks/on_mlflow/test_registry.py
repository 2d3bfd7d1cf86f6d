import json
from datetime import UTC, datetime

import pytest

from tasks.on_mlflow import champion, registry
from tasks.on_mlflow.client import client
from tasks.on_mlflow.lineage import lineage
from vitcore.errors import RequestError


def register(uri, name="elpv", identity="train-1", **changes):
    return registry.register(
        uri,
        **{
            "name": name,
            "identity": identity,
            "run_id": "r" * 32,
            "model_uri": "file:///nowhere",
            "tags": {"vit.digest": "d" * 64},
            "description": "a model",
            **changes,
        },
    )


def test_registering_twice_is_registering_once(uri):
    first = register(uri)
    assert (first.name, first.version, first.uri, first.identity) == ("elpv", 1, "models:/elpv/1", "train-1")
    assert (first.digest, first.description, first.created.tzinfo is not None) == ("d" * 64, "a model", True)
    assert register(uri) == first
    assert register(uri, identity="train-2").version == 2
    again = register(uri, run_id="s" * 32, fresh=True)
    assert again.version == 3
    assert register(uri, run_id="s" * 32, fresh=True) == again
    assert registry.find(uri, "elpv", "train-1") == again
    assert registry.find(uri, "elpv", "train-99") is None
    with pytest.raises(RequestError, match="cannot name a model"):
        register(uri, name="a/b")


def test_a_description_is_cut(uri):
    assert len(register(uri, description="x" * 6000).description) == 5000


def test_references(uri):
    with pytest.raises(RequestError, match="nothing is registered yet"):
        registry.resolve(uri, "models:/elpv/1")
    for number in range(1, 5):
        register(uri, identity=f"train-{number}")
    champion.set_champion(uri, "elpv", 2)
    client(uri).delete_model_version("elpv", "3")
    assert registry.resolve(uri, "models:/elpv/1").version == 1
    assert registry.resolve(uri, "models:/elpv/latest").version == 4
    assert registry.resolve(uri, "models:/elpv@champion").version == 2


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("models:/elpw/1", "there is no model 'elpw' in the registry; did you mean 'elpv'?"),
        ("models:/zzz/1", "there is no model 'zzz' in the registry: there is elpv"),
        ("models:/elpv/9", "model 'elpv' has no version '9': there is 1-2"),
        ("models:/elpv@champ", "model 'elpv' has no alias 'champ': there is champion (version 1)"),
        ("elpv", "write models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/elpv", "write models:/NAME/VERSION or models:/NAME@ALIAS"),
        ("models:/el'pv/1", "has a quote in it"),
    ],
)
def test_a_wrong_reference_is_one_sentence(uri, ref, message):
    register(uri)
    register(uri, identity="train-2")
    champion.set_champion(uri, "elpv", 1)
    with pytest.raises(RequestError) as caught:
        registry.resolve(uri, ref)
    assert message in str(caught.value)


def test_listing_shows_only_our_own(uri):
    register(uri)
    register(uri, identity="train-2")
    register(uri, name="solar")
    mlflow = client(uri)
    mlflow.create_registered_model("foreign")
    mlflow.create_model_version("foreign", "file:///nowhere")
    champion.set_champion(uri, "elpv", 1)
    models = registry.list_models(uri)
    assert [(model.name, [version.version for version in model.versions]) for model in models] == [
        ("elpv", [2, 1]),
        ("solar", [1]),
    ]
    assert models[0].champion.version == 1
    assert models[1].champion is None


def test_lineage_walks_up(uri):
    register(uri, name="teacher", identity="t", tags={"vit.dataset": "aaa", "vit.parent": "pypi:efficientnet_lite0"})
    register(uri, name="deit", identity="d", tags={"vit.dataset": "aaa", "vit.teacher": "models:/teacher/1"})
    register(uri, name="deit", identity="f", tags={"vit.dataset": "bbb", "vit.parent": "models:/deit/1"})
    tree = lineage(uri, "models:/deit/2")
    assert (tree.role, tree.ref, tree.dataset) == ("self", "models:/deit/2", "bbb")
    (parent,) = tree.ancestors
    assert (parent.role, parent.ref, parent.dataset) == ("parent", "models:/deit/1", "aaa")
    (teacher,) = parent.ancestors
    assert (teacher.role, teacher.ref) == ("teacher", "models:/teacher/1")
    (public,) = teacher.ancestors
    assert (public.role, public.ref, public.version, public.ancestors) == (
        "parent",
        "pypi:efficientnet_lite0",
        None,
        (),
    )
    client(uri).delete_model_version("teacher", "1")
    assert lineage(uri, "models:/deit/2").ancestors[0].ancestors[0].version is None


def test_tags_of_a_version(uri):
    version = registry.tag_version(uri, register(uri), {"vit.gate": "passed"})
    assert version.tags["vit.gate"] == "passed"
    assert registry.resolve(uri, version.uri) == version


def test_champions_come_and_go_back(uri):
    for number in range(1, 5):
        register(uri, identity=f"train-{number}")
    assert champion.champion(uri, "elpv") is None
    assert champion.previous_champion(uri, "elpv") is None
    for number in (1, 2, 3):
        moved = champion.set_champion(uri, "elpv", number)
        assert (moved.version, moved.aliases) == (number, ("champion",))
    assert champion.set_champion(uri, "elpv", 3).version == 3
    assert champion.previous_champion(uri, "elpv").version == 2
    assert champion.rollback_champion(uri, "elpv").version == 2
    assert champion.champion(uri, "elpv").version == 2
    assert champion.rollback_champion(uri, "elpv").version == 1
    with pytest.raises(RequestError, match="no earlier champion"):
        champion.rollback_champion(uri, "elpv")
    champion.set_champion(uri, "elpv", 4)
    assert champion.previous_champion(uri, "elpv").version == 1
    actions = [(change.action, change.version) for change in champion.history(uri, "elpv")]
    assert actions == [
        ("promoted", 1),
        ("promoted", 2),
        ("promoted", 3),
        ("rolled back", 2),
        ("rolled back", 1),
        ("promoted", 4),
    ]
    with pytest.raises(RequestError, match="no version '9'"):
        champion.set_champion(uri, "elpv", 9)


def test_a_champion_moved_by_hand_or_deleted_is_understood(uri):
    for number in range(1, 5):
        register(uri, identity=f"train-{number}")
    champion.set_champion(uri, "elpv", 1)
    champion.set_champion(uri, "elpv", 2)
    client(uri).set_registered_model_alias("elpv", "champion", "3")
    champion.set_champion(uri, "elpv", 4)
    assert champion.previous_champion(uri, "elpv").version == 3
    client(uri).delete_model_version("elpv", "3")
    assert champion.previous_champion(uri, "elpv").version == 2


def test_the_history_keeps_the_newest_and_fits_its_tag(uri, monkeypatch):
    entry = champion.Change(version=10**6, at=datetime.now(UTC), action="rolled back").model_dump(mode="json")
    assert len(json.dumps([entry] * champion._KEPT)) < 5000
    monkeypatch.setattr(champion, "_KEPT", 3)
    for number in (1, 2):
        register(uri, identity=f"train-{number}")
    for turn in range(5):
        champion.set_champion(uri, "elpv", turn % 2 + 1)
    assert [change.version for change in champion.history(uri, "elpv")] == [1, 2, 1]
