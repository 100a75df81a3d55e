"""Write the captions of Flickr8k-CN as a table of texts: English, machine-translated and human Chinese.

    python scripts/flickr8k_cn.py FOLDER texts.jsonl [--captions 1]

FOLDER holds flickr8kenc, flickr8kzhb (machine translation), flickr8kzhmtest (human translation) and the lists of the
images of train and test, as github.com/li-xirong/flickr8kcn publishes them, gzipped. A caption and its translation
share the column pair; Chinese of the part test is human, of the part train by machine.
"""

import argparse
import gzip
import json
from pathlib import Path

Captions = dict[tuple[str, int], str]


def read_captions(path: Path) -> Captions:
    """By (image, number of the caption): the text."""
    found: Captions = {}
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            key, _, text = line.rstrip("\n").partition(" ")
            image, _, number = key.split("#")
            if text.strip():
                found[image.removesuffix(".jpg"), int(number)] = text.strip()
    return found


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
            listed = gzip.decompress((chosen.folder / f"flickr8k{part}.txt.gz").read_bytes())
            for image in sorted(listed.decode().split()):
                for number in range(chosen.captions if part == "train" else 1):
                    key = image, number
                    for language, texts in (("en", english), ("zh", translated)):
                        row = {
                            "id": f"{part}/{image}#{number}.{language}",
                            "language": language,
                            "text": texts[key],
                            "pair": f"{image}#{number}",
                        }
                        file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
