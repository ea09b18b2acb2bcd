"""Keys in a payload: known formats are refused by the variable's name, innocent payloads pass."""

from __future__ import annotations

import base64
import hashlib
import pickle
import uuid
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from fal_notebook.exceptions import SecretInPayloadError
from fal_notebook.payload import capture
from fal_notebook.payload.secret_scan import Finding, environment_secrets, scan, scan_known
from fal_notebook.runner.envelope import unpack

HEX = hashlib.sha256(b"test").hexdigest()
B62 = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA1cF2iL3oR4uX5"  # no key, but shaped like one
UPPER = "A2C4E6G8J1K3M5N7"
FAL_ID = "12345678-9abc-4def-8123-456789abcdef"

# Put together here, so that scanners of repositories do not take the tests for leaks.
KEYS = {
    "aws": "AK" + "IA" + UPPER,
    "aws session": "AS" + "IA" + UPPER,
    "github": "gh" + "p_" + B62[:36],
    "github app": "gh" + "s_" + B62[:36],
    "github fine": "github" + "_pat_" + B62[:22] + "_" + B62[:40],
    "gitlab": "gl" + "pat-" + B62[:20],
    "openai": "s" + "k-" + B62 + "Zz9",
    "openai project": "s" + "k-proj-" + B62[:20] + "_-" + B62,
    "anthropic": "s" + "k-ant-" + "api03-" + B62,
    "openrouter": "s" + "k-or-" + "v1-" + HEX,
    "hugging face": "h" + "f_" + B62[:34],
    "slack": "xo" + "xb-" + "123456789012-" + B62[:24],
    "slack webhook": "https://hooks.slack" + ".com/services/" + "T0AB1CD2E/B0AB1CD2E/" + B62[:24],
    "google": "AI" + "za" + B62[:35],
    "stripe": "s" + "k_live_" + B62[:24],
    "stripe restricted": "r" + "k_live_" + B62[:24],
    "npm": "np" + "m_" + B62[:36],
    "pypi": "py" + "pi-AgE" + "IcHlwaS5vcmc" + B62,
    "sendgrid": "S" + "G." + B62[:22] + "." + B62[:43],
    "digitalocean": "do" + "p_v1_" + HEX,
    "twilio": "S" + "K" + HEX[:32],
    "replicate": "r" + "8_" + B62[:37],
    "azure": "Account" + "Key=" + (B62 * 2)[:86] + "==",
    "jwt": "ey" + "JhbGciOiJIUzI1NiJ9" + "." + "ey" + "JzdWIiOiIxMjM0In0" + "." + B62,
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + (B62 + "\n") * 3,
    "groq": "gs" + "k_" + (B62 + B62)[:52],
    "google access": "ya" + "29." + "a0" + B62 + B62[:9],
    "telegram": "123456789" + ":A" + "A" + B62[:33],
    "fal": FAL_ID + ":" + HEX[:32],
    "gateway": "kft3mqfzoz2nwe25" + ":" + HEX[:32],
    "google oauth": "GOC" + "SPX-" + B62[:13] + "-_" + B62[:13],
    "databricks": "da" + "pi" + HEX[:32],
    "databricks numbered": "da" + "pi" + HEX[:32] + "-2",
    "shopify": "shp" + "at_" + HEX[:32],
    "vault": "hv" + "s.CAES" + "IJ" + B62 + "-_" + B62,
    "vault root": "hv" + "s." + B62[:24],
    "xai": "xa" + "i-" + (B62 * 2)[:80],
    "nvidia": "nv" + "api-" + B62[:30] + "-_" + B62[:32],
    "perplexity": "pp" + "lx-" + (B62 * 2)[:48],
    "tavily": "tv" + "ly-" + B62[:32],
    "tavily dev": "tv" + "ly-dev-" + B62[:32],
    "pinecone": "pc" + "sk_" + B62[:6] + "_" + (B62 * 2)[:63],
    "langsmith": "lsv2" + "_pt_" + HEX[:32] + "_" + HEX[:10],
    "docker": "dckr" + "_pat_" + B62[:25] + "-_",
    "age": "AGE-SECRET" + "-KEY-1" + ("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L" * 2)[:58],
    "doppler": "dp" + ".pt." + B62[:43],
    "notion": "nt" + "n_" + "12345678901" + B62[:35],
    "notion old": "sec" + "ret_" + B62[:43],
    "linear": "lin" + "_api_" + B62[:40],
    "database": "postgresql+psycopg://app" + ":" + "h8Kq2pLw" + "@" + "db.example.org/main",
    "redis": "redis://" + ":" + "h8Kq2pLw" + "@" + "10.0.0.3:6379",
}


def cell(source: str, **names: Any) -> Any:
    namespace = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace["predict"]


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_in_a_variable_is_refused_by_its_name_and_not_shown(kind: str) -> None:
    with pytest.raises(SecretInPayloadError) as caught:
        capture(cell("def predict(): return API_KEY", API_KEY=KEYS[kind]))
    message = str(caught.value)
    assert message.startswith("`API_KEY`, which `predict` uses, looks like a")
    assert "allow_secret=API_KEY" in message
    assert KEYS[kind] not in message


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_found_wherever_it_stands(kind: str) -> None:
    key = KEYS[kind].encode()
    noise = np.random.default_rng(1).bytes(200_000)
    for at in (0, 65_530 - len(key) // 2, 65_536, 150_000, len(noise)):
        assert scan(noise[:at] + b"\n" + key + b"\n" + noise[at:])


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_found_inside_of_data_and_code(kind: str) -> None:
    for key in (KEYS[kind], KEYS[kind].encode()):
        with pytest.raises(
            SecretInPayloadError, match=r"`config`, which `helper` uses, holds what"
        ):
            capture(
                cell(
                    "def helper(): return config\ndef predict(): return helper()",
                    config={"keys": [key]},
                )
            )
        with pytest.raises(SecretInPayloadError, match="`predict` contains what looks like a"):
            capture(cell(f"def predict(): return {key!r}"))


@pytest.mark.parametrize("length", range(45, 130))
def test_the_length_byte_of_a_pickled_string_hides_no_key(length: int) -> None:
    key = "s" + "k-proj-" + (B62 * 3)[: length - 8]
    with pytest.raises(SecretInPayloadError):
        capture(cell("def predict(): return k", k=key))


def test_a_key_in_a_class_is_refused() -> None:
    with pytest.raises(SecretInPayloadError, match="`Client` contains what looks like an OpenAI"):
        capture(cell(f"class Client:\n    key = {KEYS['openai']!r}\ndef predict(): return Client"))


def test_a_key_as_default_of_a_dataclass_is_refused_by_the_name_of_the_class() -> None:
    source = (
        "from dataclasses import dataclass\n@dataclass\nclass Options:\n    name: str = KEY\n"
        "def predict(): return Options().name"
    )
    function = cell(source, KEY=KEYS["openai"])
    with pytest.raises(SecretInPayloadError, match=r"^`Options` contains .*allow_secret=Options "):
        capture(function)
    capture(function, allow_secret=["Options"])


TEXTS = {
    "text": lambda key: np.array([key, "b"]),
    "full width": lambda key: np.array([key, key]),
    "big-endian": lambda key: np.array([[key, "b"]], dtype=">U200"),
    "records": lambda key: np.array([(key, 1)], dtype=[("key", "U200"), ("n", "i4")]),
    "bytes": lambda key: np.array([key.encode()] * 2),
    "objects": lambda key: np.array([key, None], dtype=object),
    "a column": lambda key: {"frame": [np.array([[key]], dtype="U200")]},
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_key_in_an_array_is_refused_by_its_variables_name(kind: str) -> None:
    for key in KEYS.values():
        table = TEXTS[kind](key)
        with pytest.raises(SecretInPayloadError, match="`table`, which `predict` uses, holds what"):
            capture(cell("def predict(): return table", table=table))


@pytest.mark.parametrize("kind", TEXTS)
def test_an_array_of_text_travels_as_it_is(kind: str) -> None:
    table = TEXTS[kind]("no key")
    content = capture(cell("def predict(): return table", table=table)).content
    loaded = pickle.loads(unpack(content)[1])["function"]()
    if isinstance(table, np.ndarray):
        assert (loaded.dtype, loaded.shape) == (table.dtype, table.shape)
        assert loaded.tolist() == table.tolist()


def test_allow_secret_lets_the_named_variable_travel_and_no_other() -> None:
    function = cell("def predict(): return A, B", A=KEYS["openai"], B=KEYS["github"])
    with pytest.raises(SecretInPayloadError, match=r"^`B`"):
        capture(function, allow_secret=["A"])
    assert capture(function, allow_secret=["A", "B"]).digest


def test_an_allowed_name_that_nothing_captured_has_is_noted() -> None:
    function = cell("def predict(): return API_KEY", API_KEY="none")
    (note,) = capture(function, allow_secret=["API_KYE"]).warnings
    assert note == "allow_secret names `API_KYE`, which is not captured; did you mean `API_KEY`?"
    (note,) = capture(function, allow_secret=["API_KEY", "zzz"]).warnings
    assert note == "allow_secret names `zzz`, which is not captured"
    options = {"options": {"message": "held"}}
    assert capture(function, allow_secret=["message", "predict"], identity=options).warnings == ()


def test_the_same_key_under_two_names_needs_both_allowed() -> None:
    key = KEYS["openai"]
    with pytest.raises(SecretInPayloadError, match=r"^`B`"):
        capture(cell("def predict(): return A, B", A=key, B=key), allow_secret=["A"])


def test_a_key_in_a_comment_of_the_source_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "cell.py"
    path.write_text(f"def predict():\n    # old: {KEYS['openai']}\n    return 1\n")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(path.read_text(), str(path), "exec"), namespace)
    with pytest.raises(SecretInPayloadError, match="`predict` contains"):
        capture(namespace["predict"])
    manifest = capture(namespace["predict"], allow_secret=["predict"]).manifest
    assert "# old" in manifest["sources"]["predict"]


def test_a_stored_secret_is_refused_by_name() -> None:
    function = cell("def predict(): return c", c={"a": "zebra-crossing"})
    with pytest.raises(SecretInPayloadError) as caught:
        capture(function, known_secrets={"DB": "zebra-crossing"})
    assert str(caught.value).startswith("`c`, which `predict` uses, holds the value of DB;")
    assert "declare secrets=DB" in str(caught.value)
    assert "zebra" not in str(caught.value)
    assert capture(function, known_secrets={"DB": "short", "OTHER": "something else"}).digest


def test_the_value_of_a_secret_environment_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "correct horse battery staple")
    with pytest.raises(SecretInPayloadError, match="environment variable MY_SERVICE_TOKEN"):
        capture(cell("def predict(): return t", t="x correct horse battery staple"))


def test_paths_and_short_values_of_the_environment_are_no_secrets() -> None:
    variables = {"SSH_KEY": "/etc/../etc/passwd", "A_TOKEN": "short", "HOME": "x" * 40}
    assert environment_secrets(variables) == {}


def test_a_finding_does_not_show_its_text() -> None:
    (finding,) = scan(KEYS["openai"].encode())
    assert KEYS["openai"] not in repr(finding)
    assert scan_known(b"abcdefgh", {"N": "abcdefgh"}) == [Finding("the value of N", b"abcdefgh")]


def digits_model() -> LogisticRegression:
    pixels, labels = load_digits(return_X_y=True)
    return LogisticRegression(max_iter=500).fit(pixels / 16, labels)


INNOCENT = {
    "digits model": digits_model,
    "neighbours with all digits": lambda: KNeighborsClassifier().fit(*load_digits(return_X_y=True)),
    "hashes": lambda: [hashlib.sha256(bytes([i])).hexdigest() for i in range(200)],
    "git and md5": lambda: [hashlib.md5(bytes([i])).hexdigest() for i in range(200)],
    "uuids": lambda: [str(uuid.UUID(int=i * 7919**9)) for i in range(1, 500)],
    "pairs of uuid and text": lambda: [f"{FAL_ID}:{i}" for i in range(50)],
    "base64 image": lambda: base64.b64encode(np.random.default_rng(2).bytes(2_000_000)).decode(),
    "urlsafe base64": lambda: base64.urlsafe_b64encode(np.random.default_rng(3).bytes(2_000_000)),
    "long hex": lambda: np.random.default_rng(4).bytes(1_000_000).hex(),
    "random bytes": lambda: np.random.default_rng(5).bytes(3_000_000),
    "floats": lambda: np.random.default_rng(6).normal(size=300_000),
    "small integers": lambda: np.random.default_rng(7).integers(32, 127, 1_000_000, dtype="u1"),
    "words": lambda: ["task-" + "abcdefgh" * 5, "sk-learn-is-a-name", "risk-" + B62, "disk_live_x"],
    "examples": lambda: ["sk-...", "sk-" + "x" * 48, "AKIA" + "X" * 16, "ghp_<your token here>"],
    "examples of vendors": lambda: [
        *("AKIAIOSFODNN7" + "EXAMPLE", "arn:aws:AKIAI44QH8DHB" + "EXAMPLE"),
        "https://hooks.slack" + ".com/services/T00000000/B00000000/" + "X" * 24,
    ],
    "names that begin like keys": lambda: [
        *("dapi_client", "hvs.example.org", "xai-explanations-of-a-model", "dp.pt.md", "ntn_id"),
        *("secret_name_of_a_long_variable_in_a_config_file_1", "secret_" + "x" * 43, "xai-" + B62),
        *("secret_" + B62[:42], "secret_" + B62[:44], "nvapi-" + B62, "pplx-" + B62[:40]),
        *("tvly-" + B62[:20], "pcsk_" + B62, "lsv2_pt_" + HEX, "dckr_pat_" + B62, "ghost"),
        *("lin_api_key_of_the_client", "shpat_" + HEX, "dapi" + HEX),
        *("GOCSPX-your-client-secret", "hvs." + B62[:30], "dp.pt." + B62[:30]),
    ],
    "urls": lambda: ["https://example.org:8080/a@b", "redis://localhost:6379/0", "http://a/b:c@d"],
    "placeholders": lambda: ["postgres://user:password@localhost/db", "mysql://u:{pw}@host/db"],
    "public key": lambda: "-----BEGIN PUBLIC KEY-----\n" + B62,
    "a mention of a private key": lambda: "a file with -----BEGIN PRIVATE KEY----- at its top",
    "digest strings": lambda: ["sha512-" + base64.b64encode(bytes(range(64))).decode()],
}


@pytest.mark.parametrize("kind", INNOCENT)
def test_innocent_payloads_pass(kind: str) -> None:
    assert capture(cell("def predict(): return value", value=INNOCENT[kind]())).digest


def test_a_docstring_about_keys_passes() -> None:
    source = (
        'def predict():\n    """Give a key such as sk-... or hf_xxx; AKIA, ghp_ and SG. too."""'
    )
    assert capture(cell(source)).digest
