"""`dcm eval metrics` from outside, on a tiny model and the C reference.

metrics.py DCM MAKE_TINY_MODEL GET_MODEL [PATTERN].

The values themselves are held against PyTorch in tests/model/test_metrics.c; here is what is made of them.
"""
import json

import check
from eval import rows, text_file

POLICIES = "dcm:L=4:S=2:merge=newer,dcm:L=4:S=2:merge=mean:kv=f32,window:W=auto:S=2,full"


def metrics(cli, *args):
    path = text_file(cli, "metrics.txt", 60, 3)
    return rows(cli, "metrics", "-f", path, "-n", "90", *args)


def close(a, b):
    assert abs(a - b) <= 1e-8 * max(abs(a), abs(b)) + 1e-10, (a, b)  # ten digits are printed


def test_metrics_rows(cli):
    found = metrics(cli, "--policies", POLICIES, "--skip", "30")
    policies = list(dict.fromkeys(r["policy"] for r in found))
    assert len(policies) == 4 and len(found) == 4 * 3
    for name in policies:
        *layers, mean = [r for r in found if r["policy"] == name]
        assert [r["layer"] for r in layers] == [0, 1] and mean["layer"] == "mean"
        for r in layers + [mean]:
            close(r["sdi"], (1 - r["cosine"]) / 2 + r["js"] / 2)
            close(r["c_m"], 90 / r["units"])
            assert r["kv_bytes"] == r["units"] * r["b_kv"]
        for key in "il", "cosine", "js":
            close(mean[key], (layers[0][key] + layers[1][key]) / 2)
        close(mean["il"] / mean["il_relative"], sum(r["il"] / r["il_relative"] for r in layers) / 2)
        count = mean["boundaries"]
        assert count == sum(r["boundaries"] for r in layers)
        for key in "bsd", "bsd_log":
            if count:
                close(mean[key], sum(r[key] * r["boundaries"] for r in layers) / count)
            else:
                assert mean[key] is None
    newer, mean, window, full = ([r for r in found if r["policy"] == name][-1] for name in policies)
    assert newer["units"] == mean["units"] == window["units"] < full["units"] == 90
    assert 2 * newer["b_kv"] == mean["b_kv"], "f32 keys and values take twice the bytes of f16"
    assert newer["boundaries"] == mean["boundaries"] > 0 == window["boundaries"]
    assert full["cosine"] > 0.99999 > 0.99 > newer["cosine"] and full["il"] < 1e-4 < newer["il"]
    assert newer["js"] > 1e-3 and window["js"] > 1e-3 > 1e-6 > full["js"]


def test_metrics_queries(cli):
    """All queries of a text in two halves: their mean is that of all."""
    args = ["--policies", "dcm:L=4:S=2:merge=newer:kv=f32"]
    every, half, last = (metrics(cli, *args, "--skip", skip, "--queries", queries)[0]
                         for skip, queries in (("0", "0"), ("45", "0"), ("0", "1")))
    first = rows(cli, "metrics", "-f", cli.folder / "metrics.txt", "-n", "45", *args, "--queries", "0")[0]
    for key in "il", "cosine", "js":
        wanted = (first[key] + half[key]) / 2
        assert abs(every[key] - wanted) <= 1e-4 * abs(wanted), (key, every[key], wanted)
    only = metrics(cli, *args, "--skip", "89")[0]
    for key in "il", "js", "bsd", "boundaries":
        assert only[key] == last[key], key


def test_metrics_text(cli):
    path = text_file(cli, "metrics.txt", 60, 3)
    args = ["-m", cli.tiny, "-f", path, "-n", "90", "-L", "4", "--merge", "newer", "-q"]
    table = json.loads(cli.ok("eval", "metrics", *args, "--format", "json"))
    assert table["test"] == "metrics" and table["queries"] == 64 and table["tokens"] == 90
    text = cli.ok("eval", "metrics", *args).decode()
    assert "bsd_log: |ln(older / newer)|" in text and text.split()[:3] == ["policy", "layer", "units"]


def test_metrics_usage(cli):
    base = ["-m", cli.tiny, "-f", cli.text, "-q"]
    for args, message in [
        (["--chunk", "64"], "--chunk has no effect"),
        (["--queries", "-1"], "--queries"),
        (["--policies", "dcm", "-L", "8"], "--group has no effect with --policies"),
        (["--interval", "90"], "--interval"),
    ]:
        cli.fails(2, message, "eval", "metrics", *base, *args)
    cli.fails(3, "nothing to measure", "eval", "metrics", *base, "--skip", "30000")
    long = text_file(cli, "long.txt", 12000, 3)
    cli.fails(2, r"at most 32768 can be measured", "eval", "metrics", "-m", cli.tiny, "-f", long, "-q")


if __name__ == "__main__":
    check.main(globals())
