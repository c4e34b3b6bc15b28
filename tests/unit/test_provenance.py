"""What records say of the machine."""

import platform

import pytest

from parsimony import provenance


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("sse4_2 avx2 avx512f avx512_bf16", "AMD EPYC with AVX-512 and bfloat16"),
        ("avx2 avx512f", "AMD EPYC with AVX-512"),
        ("avx avx2", "AMD EPYC with AVX2"),
        ("sse4_2", "AMD EPYC"),
    ],
)
def test_processors_of_one_name_are_told_apart_by_their_vectors(flags, name, tmp_path):
    core = f"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: {flags}\n\n"
    (tmp_path / "cpuinfo").write_text(core + core)
    assert provenance.processor(tmp_path / "cpuinfo") == name


def test_a_system_that_says_nothing_of_its_processor(tmp_path):
    assert provenance.processor(tmp_path / "cpuinfo") == (platform.processor() or platform.machine())
