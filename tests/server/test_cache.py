"""Which versions keep answers, and that features which are looked up are never older than the operator allows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from penstock.features import Column, FeatureView, open_store
from penstock.kernels.wire import Plan
from penstock.server.cache import CacheSettings, _place_of, cache_of
from penstock.server.config import Config
from penstock.server.errors import BadConfig

PLAN = Plan("m", "1", [("x", "FP32", (-1,), "tensor", False)], [("y", "FP32", (), False)])
VIEW = FeatureView(name="v", entity="id", columns=[Column(name="a", dtype="float32", default=0.0)], ttl_s=30)


def of(views=(), **settings):
    return cache_of("m", PLAN, views, {name: CacheSettings(**value) for name, value in settings.items()})


def test_a_model_has_the_cache_it_is_given():
    assert of() is None
    assert of(other={}) is None
    cache = of(m={"bytes": 100_000, "ttl_s": 1.5})
    assert (cache.size, cache.ttl_ns) == (100_000, 1_500_000_000)


def test_a_name_comes_before_the_star():
    settings = {"*": CacheSettings(ttl_s=1), "m": CacheSettings(ttl_s=2)}
    assert cache_of("m", PLAN, (), settings).ttl_ns == 2_000_000_000
    assert cache_of("n", PLAN, (), settings).ttl_ns == 1_000_000_000


def test_answers_of_looked_up_features_are_kept_only_where_the_operator_says_for_how_long(caplog):
    assert of([VIEW], m={}) is None
    assert "joined_ttl_s" in caplog.text
    assert of([VIEW], m={"joined_ttl_s": 5}).ttl_ns == 5_000_000_000
    assert of([VIEW], m={"joined_ttl_s": 500}).ttl_ns == 30_000_000_000


def test_the_example_of_the_page_is_taken(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "cache.md").read_text("utf-8")
    (tmp_path / "serve.yaml").write_text(re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1])
    settings = Config.read(tmp_path / "serve.yaml").cache
    assert cache_of("fraud", PLAN, (), settings).size == 268435456
    assert cache_of("anything", PLAN, (), settings).ttl_ns == 10**10


def test_every_field_is_listed_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "cache.md").read_text("utf-8")
    for name, field in CacheSettings.model_fields.items():
        default = "none" if field.default is None else f"{field.default:g}" if name != "bytes" else str(field.default)
        assert f"| `{name}` | {default} |" in page


@pytest.mark.parametrize("wrong", [{"bytes": 1}, {"ttl_s": 0}, {"joined_ttl_s": -1}, {"size": 1}])
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(BadConfig, match=rf"cache\.m\.{next(iter(wrong))}"):
        Config.read(cache={"m": wrong})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (
            {"m": {"size": 1}},
            "'cache.m.size': a model's cache has bytes, ttl_s, joined_ttl_s, shared, shared_timeout_ms,",
        ),
        ({"m": 5}, "'cache.m': a model's cache is a mapping with some of bytes, ttl_s, .*; {} takes the defaults"),
        ({"m": ["ttl_s"]}, "'cache.m': a model's cache is a mapping with some of"),
        (["m"], "'cache': it is a mapping of models to settings, as cache: {MODEL: {ttl_s: 60}}"),
        ("m", "'cache': it is a mapping of models"),
        ({1: {}}, "'cache.1': a model's name is a text; put it in quotes"),
        ({"m": {"ttl_s": "soon"}}, "'cache.m.ttl_s': Input should be a valid number"),
        ({"m": {"bytes": 1}}, "'cache.m.bytes': Input should be greater than or equal to 65536"),
        ({"m": {"shared": 7}}, "'cache.m.shared': it is the URL of a Redis"),
        ({"m": {"shared": "http://u:geheim@h"}}, "'cache.m.shared': a Redis URL is redis://"),
        (
            {"m": {"shared": "redis://u:geheim@h:1?hue=7"}},
            "'cache.m.shared': the URL of the shared cache at h:1 has an",
        ),
        ({"m": {"shared_timeout_ms": 0}}, "'cache.m.shared_timeout_ms': Input should be greater than 0"),
    ],
)
def test_one_line_says_what_is_wrong_and_what_is_allowed(wrong, told):
    with pytest.raises(BadConfig, match=rf"^setting {told}") as caught:
        Config.read(cache=wrong)
    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_model_that_is_named_and_nothing_more_gets_what_is_usual(nothing):
    assert Config.read(cache={"m": nothing}).cache == {"m": CacheSettings()}


def test_the_password_of_a_url_is_not_shown():
    config = Config(cache={"m": {"shared": "redis://u:geheim@h:1"}})
    assert "geheim" not in repr(config)
    assert "geheim" not in str(config.cache)


@pytest.mark.parametrize(
    "one",
    [
        "redis://ada:pw@h:1/0",
        "unix:///run/redis.sock",
        "embedded:///srv/rows",
        "redis+cluster://ada:pw@h:1,i:2",
        "rediss+sentinel://ada:pw@h:1,i:2/rows",
    ],
)
def test_a_place_of_features_is_the_same_whoever_asks(one):
    assert _place_of(one) == _place_of(one.replace("ada:pw@", "bob:other@"))
    assert _place_of(one)
    assert _place_of(one) != _place_of(one.replace("h:1", "h:2").replace("/run", "/tmp").replace("/srv", "/tmp"))


@pytest.mark.parametrize("private", ["", "memory://", "memory://name", "embedded://"])
def test_a_store_of_one_process_is_no_place_to_share(private):
    assert not _place_of(private)


@pytest.fixture
def joined(registry, graphs, serving, calling, proxy):
    """A version that joins `VIEW` from a Redis that can misbehave; a Caller."""
    view = VIEW.model_copy(update={"on_outage": "default"})
    graphs.publish(registry, "copy", graphs.copy(1), columns=("a",), views=[view])
    store = open_store(proxy.url)
    store.put(view, [b"ada"], {"a": np.array([1.5], "f4")})
    store.close()
    return calling(serving(features=proxy.url, feature_timeout_ms=200, cache={"copy": {"joined_ttl_s": 20}}))


def ask(caller) -> tuple[list[list[float]], bool]:
    answer = caller.stub.ModelInfer(entity(caller))
    return np.frombuffer(answer.raw_output_contents[0], "f4").tolist(), "cached" in answer.parameters


def entity(caller):
    request = caller.request("copy", [[1.0]])
    del request.inputs[:]
    del request.raw_input_contents[:]
    request.inputs.add(name="id", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"ada")
    return request


def test_an_answer_without_its_features_is_not_kept(joined, proxy):
    proxy.mode = "cut"
    assert ask(joined) == ([0.0], False)
    assert ask(joined) == ([0.0], False)


def test_an_answer_with_its_features_is_kept(joined):
    assert ask(joined) == ([1.5], False)
    assert ask(joined) == ([1.5], True)
