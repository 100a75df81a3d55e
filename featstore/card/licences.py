"""Licences and their terms in short, and the licences and citations of well-known teachers.

A licence that is not in the table is kept as text.
"""

from dataclasses import dataclass

from featstore.format.manifest_records import TeacherRecord


@dataclass(frozen=True)
class Licence:
    """A known licence."""

    name: str
    url: str
    terms: str  # in a few words
    # the Hugging Face hub knows the identifier; otherwise a card has ``license: other`` and its name
    on_hub: bool = True


_CREDIT = "any use, with credit"
_NO_TRADE = "no commercial use; credit"
_ALIKE = "adaptations under the same licence"
_NONE = "no sharing of adaptations"

_CC = "https://creativecommons.org/licenses"
_BSD = ("https://opensource.org/license", "any use; keep the notice")

LICENCES = {
    "apache-2.0": Licence(
        "Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0", "any use; keep the notices"
    ),
    "mit": Licence("MIT License", f"{_BSD[0]}/mit", _BSD[1]),
    "bsd-2-clause": Licence("BSD 2-Clause License", f"{_BSD[0]}/bsd-2-clause", _BSD[1]),
    "bsd-3-clause": Licence("BSD 3-Clause License", f"{_BSD[0]}/bsd-3-clause", _BSD[1]),
    "cc0-1.0": Licence(
        "Creative Commons Zero 1.0", "https://creativecommons.org/publicdomain/zero/1.0/", "any use"
    ),
    **{
        f"cc-{kind}-4.0": Licence(f"Creative Commons {name} 4.0", f"{_CC}/{kind}/4.0/", terms)
        for kind, name, terms in (
            ("by", "Attribution", _CREDIT),
            ("by-sa", "Attribution-ShareAlike", f"{_CREDIT}; {_ALIKE}"),
            ("by-nd", "Attribution-NoDerivatives", f"{_CREDIT}; {_NONE}"),
            ("by-nc", "Attribution-NonCommercial", _NO_TRADE),
            ("by-nc-sa", "Attribution-NonCommercial-ShareAlike", f"{_NO_TRADE}; {_ALIKE}"),
            ("by-nc-nd", "Attribution-NonCommercial-NoDerivatives", f"{_NO_TRADE}; {_NONE}"),
        )
    },
    "odc-by": Licence(
        "Open Data Commons Attribution License", "https://opendatacommons.org/licenses/by/", _CREDIT
    ),
    "pddl": Licence(
        "Open Data Commons Public Domain Dedication and License", "https://opendatacommons.org/licenses/pddl/",
        "any use",
    ),
    "dinov3-license": Licence(
        "DINOv3 License", "https://ai.meta.com/resources/models-and-libraries/dinov3-license/",
        "Meta's own terms; read them before you share anything made with the model", on_hub=False,
    ),
}  # fmt: skip
"""By identifier, lower case. The hub's are in its list of licences."""


@dataclass(frozen=True)
class Family:
    """Teachers of one publication."""

    name: str
    marks: tuple[str, ...]  # a teacher belongs to it if its name or tag contains one of these
    citation: str  # the publication as BibTeX
    licence: str = ""  # identifier of the published weights' licence; "" if not certain
    source: str = ""  # page that states the licence


FAMILIES = (
    Family(
        "DINOv3",
        ("dinov3",),
        """\
@misc{simeoni2025dinov3,
  title = {{DINOv3}},
  author = {Sim{\\'e}oni, Oriane and Vo, Huy V. and Seitzer, Maximilian and Baldassarre, Federico and others},
  year = {2025},
  eprint = {2508.10104},
  archivePrefix = {arXiv}
}""",
        "dinov3-license",
        "https://github.com/facebookresearch/dinov3",
    ),
    Family(
        "DINOv2",
        ("dinov2",),
        """\
@article{oquab2024dinov2,
  title = {{DINOv2}: Learning Robust Visual Features without Supervision},
  author = {Oquab, Maxime and Darcet, Timoth{\\'e}e and Moutakanni, Th{\\'e}o and Vo, Huy V. and others},
  journal = {Transactions on Machine Learning Research},
  year = {2024},
  note = {arXiv:2304.07193}
}""",
        "apache-2.0",
        "https://github.com/facebookresearch/dinov2",
    ),
    Family(
        "SigLIP 2",
        ("siglip2", "v2_webli"),
        """\
@misc{tschannen2025siglip2,
  title = {{SigLIP 2}: Multilingual Vision-Language Encoders with Improved Semantic Understanding, Localization, and
           Dense Features},
  author = {Tschannen, Michael and Gritsenko, Alexey and Wang, Xiao and Naeem, Muhammad Ferjad and others},
  year = {2025},
  eprint = {2502.14786},
  archivePrefix = {arXiv}
}""",
        "apache-2.0",
        "https://github.com/google-research/big_vision",
    ),
    Family(
        "SigLIP",
        ("siglip",),
        """\
@inproceedings{zhai2023siglip,
  title = {Sigmoid Loss for Language Image Pre-Training},
  author = {Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas},
  booktitle = {IEEE/CVF International Conference on Computer Vision},
  year = {2023},
  note = {arXiv:2303.15343}
}""",
        "apache-2.0",
        "https://github.com/google-research/big_vision",
    ),
    Family(
        "AugReg",
        ("augreg",),
        """\
@article{steiner2022augreg,
  title = {How to train your {ViT}? Data, Augmentation, and Regularization in Vision Transformers},
  author = {Steiner, Andreas and Kolesnikov, Alexander and Zhai, Xiaohua and Wightman, Ross and others},
  journal = {Transactions on Machine Learning Research},
  year = {2022},
  note = {arXiv:2106.10270}
}""",
        "apache-2.0",
        "https://github.com/google-research/vision_transformer",
    ),
    Family(
        "OpenCLIP",
        ("laion", "datacomp"),
        """\
@inproceedings{cherti2023openclip,
  title = {Reproducible Scaling Laws for Contrastive Language-Image Learning},
  author = {Cherti, Mehdi and Beaumont, Romain and Wightman, Ross and Wortsman, Mitchell and others},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2023},
  note = {arXiv:2212.07143}
}""",
    ),
    Family(
        "CLIP",
        ("openai",),
        """\
@inproceedings{radford2021clip,
  title = {Learning Transferable Visual Models From Natural Language Supervision},
  author = {Radford, Alec and Kim, Jong Wook and Hallacy, Chris and Ramesh, Aditya and others},
  booktitle = {International Conference on Machine Learning},
  year = {2021},
  note = {arXiv:2103.00020}
}""",
        "mit",
        "https://github.com/openai/CLIP",
    ),
)
"""The first match counts, so a mark stands before a shorter one that it contains."""


def family_of(teacher: TeacherRecord) -> Family | None:
    """The family that a teacher's name and tag indicate; None if there is none.

    The name is no proof: other weights can be loaded under it.
    """
    if teacher.library not in ("timm", "open_clip"):
        return None
    text = f"{teacher.name} {teacher.tag}".lower()
    return next((one for one in FAMILIES if any(mark in text for mark in one.marks)), None)


def known(licence: str) -> Licence | None:
    """The licence of an identifier in any spelling; None if it is not in the table."""
    return LICENCES.get(licence.strip().lower().replace(" ", "-"))
