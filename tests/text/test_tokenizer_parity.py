"""Live parity of the default model's tokenizer and template with transformers (extra [parity])."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from subsecond.formats import cache
from subsecond.formats.gguf_in import GgufCheckpoint
from subsecond.text import gguf_tokenizer
from subsecond.text.template import ChatTemplate
from subsecond.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.parity, pytest.mark.real_model]
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

TEXTS = [
    "Why is the sky blue?",
    "The quick brown fox jumps over the lazy dog. It didn't; we'll see -- they've 'quoted' it!",
    "天空为什么是蓝色的？因为瑞利散射。１２３ ，。！",
    "日本語と한국어와 العربية и русский ελληνικά हिन्दी ไทย",
    "🎉👩‍👩‍👧‍👦🇩🇪 emoji ✨ mixed with text🙂🙂",
    "def f(x):\n\treturn {k: v**2 for k, v in x.items() if v != 0}  # comment\n\n\n",
    '<html>\n  <body class="a b">&nbsp;</body>\n</html>',
    " leading, trailing  and   runs    of     spaces \t\t tabs \r\n windows \u00a0nbsp \u3000wide ",
    "\x00\x01\x02\x1b[0m\x7f\u200b\ufeff control and zero width",
    "e\u0301 \u00e9 \u1e9e ﬁ ﬀ ① ½ ²",
    "3.14159 1,000,000 0xDEADBEEF 2024-01-31T23:59:59Z 192.168.0.1",
    "a" * 1000 + " " * 300 + "\n" * 50 + "ab" * 200,
    "I'm I'M you'RE don't DON'T 's 'S",
]
CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 🎉"}],
    [
        {"role": "user", "content": "one\n\ntwo "},
        {"role": "assistant", "content": " three"},
        {"role": "user", "content": ""},
    ],
]


@pytest.fixture(scope="module")
def gguf() -> Path:
    path = cache.home() / "sources" / FILE
    if not path.exists():
        pytest.skip("the default model isn't here; `subsecond pull` fetches it")
    return path


@pytest.fixture(scope="module")
def ours(gguf: Path) -> tuple[Tokenizer, ChatTemplate]:
    checkpoint = GgufCheckpoint(gguf)
    try:
        metadata = checkpoint.texts.gguf
    finally:
        checkpoint.close()
    assert metadata is not None
    tokens = metadata["tokenizer.ggml.tokens"]
    special = {"bos_token": tokens[1], "eos_token": tokens[2]}
    template = ChatTemplate(metadata["tokenizer.chat_template"], special)
    return Tokenizer(gguf_tokenizer.build(metadata)), template


@pytest.fixture(scope="module")
def theirs(gguf: Path):  # type: ignore[no-untyped-def]
    """transformers' own reading of the GGUF, with the digit rule that it leaves out."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import pre_tokenizers

    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return tokenizer


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: json.dumps(text)[:30])
def test_token_ids_and_text_agree(ours, theirs, text: str) -> None:  # type: ignore[no-untyped-def]
    ids = ours[0].encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours[0].decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=len)
def test_conversations_agree(ours, theirs, messages) -> None:  # type: ignore[no-untyped-def]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert ours[1].render(messages) == rendered
    ids = theirs(rendered, add_special_tokens=False)["input_ids"]
    assert ours[1].encode(ours[0], messages) == ids
