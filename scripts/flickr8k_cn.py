"""Write the captions of Flickr8k-CN as a table of texts: English, machine-translated and human Chinese.

    python scripts/flickr8k_cn.py FOLDER texts.jsonl [--captions 1]

FOLDER holds flickr8kenc, flickr8kzhb (machine translation), flickr8kzhmtest (human translation) and the lists of the
images of train and test, as github.com/li-xirong/flickr8kcn publishes them, gzipped. A caption and its translation
share the column pair; Chinese of the part test is human, of the part train by machine.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import TextIO

Captions = dict[tuple[str, int], str]


def read_gzip(path: Path) -> str:
    """The text of a file; ends the program where it is not there."""
    if not path.is_file():
        sys.exit(f"{path.absolute()} does not exist; get it from github.com/li-xirong/flickr8kcn")
    return gzip.decompress(path.read_bytes()).decode()


def read_captions(path: Path) -> Captions:
    """By (image, number of the caption): the text."""
    found: Captions = {}
    for line in read_gzip(path).splitlines():
        key, _, text = line.partition(" ")
        image, _, number = key.split("#")
        if text.strip():
            found[image.removesuffix(".jpg"), int(number)] = text.strip()
    return found


def write_pairs(file: TextIO, prefix: str, texts: dict[str, str], **columns: str) -> None:
    """Write a text and its translations, one line for each language; they share the value of column pair."""
    for language, text in texts.items():
        row = {"id": f"{prefix}.{language}", "language": language, "text": text} | columns
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--captions", type=int, default=1, help="captions per training image, 1 to 5"
    )
    chosen = parser.parse_args()
    english = read_captions(chosen.folder / "flickr8kenc.caption.txt.gz")
    chinese = {
        "train": read_captions(chosen.folder / "flickr8kzhb.caption.txt.gz"),
        "test": read_captions(chosen.folder / "flickr8kzhmtest.captions.txt.gz"),
    }
    with chosen.out.open("w", encoding="utf-8") as file:
        for part, translated in chinese.items():
            listed = read_gzip(chosen.folder / f"flickr8k{part}.txt.gz").split()
            for image in sorted(listed):
                for number in range(chosen.captions if part == "train" else 1):
                    pair = f"{image}#{number}"
                    texts = {"en": english[image, number], "zh": translated[image, number]}
                    write_pairs(file, f"{part}/{pair}", texts, pair=pair)


if __name__ == "__main__":
    main()
