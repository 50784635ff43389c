#!/usr/bin/env python3
"""Makes tests/golden/tokenizers/: small tokenizers of the four families, and the ids and texts that the `tokenizers` library gives.

    python tools/make_tokenizer_golden.py

Families: GPT-2 (byte-level BPE with its regex), Llama 3 (its regex, ignore_merges, a BOS), Qwen2 (NFC and its regex), and SentencePiece-style BPE
with byte fallback, in the two ways that Llama 2 and Mistral folders write it (as a normalizer, and as a Metaspace pre-tokenizer).
"""

import base64
import json
import pathlib
import random

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "tests" / "golden" / "tokenizers"

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TRAINING = [
    (ROOT / "docs" / "attention.md").read_text(),
    (ROOT / "src" / "models" / "decoder.cc").read_text(),
    (ROOT / "LICENSE").read_text(),
    "Grüße aus Köln, naïve café, Ελληνικά, русский текст, 日本語の文章です。中文文本也在这里。한국어 문장. עברית العربية हिन्दी ไทย 😀👍🏽👩‍👩‍👧\n"
    * 4,
]

HARD = [
    "",
    " ",
    "  ",
    "\n",
    "\t",
    " \n \n\n  \t ",
    "a",
    " a",
    "a ",
    "  a  b   c    ",
    "Hello world",
    "Hello, World!! 123",
    "I'm you're WE'LL they'D 'S 'tis don'T it's IT'S",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 ½ ² Ⅷ ٣٤٥ १२३",
    "naïve café e\u0301 a\u0308\u0323 \u1e69 s\u0323\u0307 \u212b \ufb01",
    "日本語の文章です。中文，文本！한국어 문장",
    "Ελληνικά русский ÄÖÜ ß ẞ İ ı",
    "שלום עולם مرحبا بالعالم हिन्दी ภาษาไทย",
    "😀 👍🏽 👩‍👩‍👧 🏳️‍🌈 🇩🇪 ☕️ ⚠",
    "\u200b\u200d\ufeff\u00a0\u2003\u3000x\u2028y\u0085z",
    "def f(x):\n    return x ** 2  # comment\n\n\tif (a->b && !c) { d[i++] += 0x1F; }\r\n",
    '<html><body class="x">&amp;</body></html>',
    "https://example.org/a/b?c=d&e=f#g user@host.com C:\\path\\file",
    "a\x00b\x01\x7f\x1b[0m",
    "\u2581\u2581 already marked \u2581x",
    "<0x0A> <0x41> <unk> <s>",
    "<|begin_of_text|>Hello<|end_of_text|>",
    "x<|special|>y <|special|> z<|special|>",
    "aaa<tool>bbb </tool>ccc",
    "wordle word wordy a-word word",
    "  <mask>  next",
    "<|begin_of_text|><|begin_of_text|> <|end_of_text|>\n<|spec",
    "a" * 300,
    "ab" * 500,
    "é" * 200,
    "ABC" * 100 + "日" * 100,
    " " * 200 + "x",
    "\n" * 50,
    "!?!?!?...---___***###@@@$$$%%%^^^",
    "‘quotes’ “double” «guillemets» –— …",
    "\ud7ff\ue000\uffff",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𓀀 🜁",
    "ﷺ ﬁ ﬂ ㎏ ① Ａ１",
    "The quick brown fox jumps over the lazy dog. " * 3,
]
INVALID = [
    b"\xff",
    b"abc\x80def",
    b"\xc3",
    b"\xe2\x82",
    b"\xe2\x82x",
    b"\xf0\x9f\x98",
    b"\xf0\x9f\x98 \xf0\x9f\x98\x80",
    b"\xc0\xaf\xed\xa0\x80",
    b"\xf5\x80\x80\x80 \xfe\xff",
    b"ok \xe6\x97\xa5\xe6\x97 ok",
]


def random_texts(count, seed):
    rng = random.Random(seed)
    ranges = [(0x20, 0x7E)] * 6 + [
        (0x09, 0x0D),
        (0xA0, 0x24F),
        (0x300, 0x36F),
        (0x370, 0x5FF),
        (0x900, 0xDFF),
        (0x1100, 0x11FF),
        (0x1E00, 0x1FFF),
        (0x2000, 0x206F),
        (0x2100, 0x2BFF),
        (0x3040, 0x30FF),
        (0x4E00, 0x9FFF),
        (0xAC00, 0xD7A3),
        (0xF900, 0xFAFF),
        (0xFF00, 0xFFEF),
        (0x1F300, 0x1FAFF),
    ]
    words = [
        "the",
        " the",
        "token",
        "  ",
        "\n\n",
        "'s",
        "'LL",
        "123",
        "<|special|>",
        "<tool>",
        "word",
        "\u2581",
        "<0x0A>",
        " <mask>",
    ]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 12)):
            if rng.random() < 0.4:
                parts.append(rng.choice(words))
            else:
                low, high = rng.choice(ranges)
                parts.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 6))))
        texts.append("".join(parts))
    return texts


def added():
    return [
        AddedToken("<|special|>", special=True, normalized=False),
        AddedToken("<tool>", special=False, normalized=False),
        AddedToken("</tool>", special=False, normalized=True),
        AddedToken("word", special=False, single_word=True, normalized=False),
        AddedToken("<mask>", special=True, lstrip=True, rstrip=True, normalized=False),
    ]


def byte_level(regex, normalizer, specials, vocab_size, ignore_merges):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.normalizer = normalizer
    if regex is None:
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        t.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(regex), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(TRAINING, trainer)
    t.add_tokens(added())
    return t


def gpt2():
    t = byte_level(None, None, ["<|endoftext|>"], 900, False)
    t.post_processor = processors.ByteLevel(trim_offsets=False)
    return t


def llama3():
    t = byte_level(LLAMA3, None, ["<|begin_of_text|>", "<|end_of_text|>"], 900, True)
    bos = t.token_to_id("<|begin_of_text|>")
    t.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A",
                pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                special_tokens=[("<|begin_of_text|>", bos)],
            ),
        ]
    )
    return t


def qwen2():
    return byte_level(QWEN2, normalizers.NFC(), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], 900, False)


def sentencepiece(metaspace):
    t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if metaspace:
        t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first", split=False)
    else:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<unk>", "<s>", "</s>"] + bytes_, limit_alphabet=120, show_progress=False
    )
    corpus = [line.replace(" ", "\u2581") for text in TRAINING for line in text.splitlines()]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("\u2581*[^\u2581]+"), behavior="isolated")
    trained.train_from_iterator(corpus, trainer)
    model = json.loads(trained.to_str())["model"]
    spec = json.loads(t.to_str())
    spec["model"] |= {"vocab": model["vocab"], "merges": model["merges"]}
    # Bytes are ordinary tokens of the model; the three others are special.
    spec["added_tokens"] = [
        {
            "id": i,
            "content": c,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, c in enumerate(["<unk>", "<s>", "</s>"])
    ]
    t = Tokenizer.from_str(json.dumps(spec))
    t.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    t.add_tokens(added())
    return t


def main():
    families = {
        "gpt2": gpt2(),
        "llama3": llama3(),
        "qwen2": qwen2(),
        "sentencepiece": sentencepiece(False),
        "sentencepiece-metaspace": sentencepiece(True),
    }
    texts = HARD + random_texts(400, 7)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "texts.json").write_text(
        json.dumps(
            {
                "tokenizers": tokenizers.__version__,
                "texts": texts,
                "invalid": [base64.b64encode(b).decode() for b in INVALID],
            },
            ensure_ascii=True,
            indent=0,
        )
        + "\n"
    )
    for name, t in families.items():
        folder = FOLDER / name
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(t.to_str(pretty=False) + "\n")
        cases = []
        for text in texts + [b.decode("utf-8", errors="replace") for b in INVALID]:
            plain, special = t.encode(text, add_special_tokens=False).ids, t.encode(text).ids
            case = {
                "ids": plain,
                "decoded": t.decode(special, skip_special_tokens=False),
                "skipped": t.decode(special, skip_special_tokens=True),
            }
            if special != plain:
                case["special"] = special
            cases.append(case)
        # Ids in any order: what a model may write.
        rng = random.Random(11)
        scrambled = []
        for _ in range(150):
            ids = [rng.randrange(t.get_vocab_size()) for _ in range(rng.randint(1, 12))]
            scrambled.append(
                {
                    "ids": ids,
                    "decoded": t.decode(ids, skip_special_tokens=False),
                    "skipped": t.decode(ids, skip_special_tokens=True),
                }
            )
        (folder / "expected.json").write_text(
            json.dumps({"cases": cases, "scrambled": scrambled}, ensure_ascii=True, separators=(",", ":")) + "\n"
        )
        print(name, t.get_vocab_size(), "tokens", len(cases), "cases")


if __name__ == "__main__":
    main()
