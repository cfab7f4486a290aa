"""`dcm eval table` from outside, on a tiny model and the C reference.

tables.py DCM MAKE_TINY_MODEL GET_MODEL [PATTERN].

The values are those that `eval ppl` and `eval metrics` find for the same files one by one.
"""
import json

import check
from eval import rows, text_file

TOKENS = ("-n", "90", "--skip", "10")


def trained(cli, name, *args):
    path = cli.folder / name
    cli.ok("train", "-m", cli.tiny, "-f", text_file(cli, "train.txt", 100, 5), "-o", path, "-n", "48", "-L", "4,8",
           "--steps", "2", "--rate", "0.01", "-q", *args)
    return str(path)


def table(cli, number, merges, *args):
    path = text_file(cli, "table.txt", 60, 3)
    out = cli.ok("eval", "table", number, "-m", cli.tiny, "-f", path, *TOKENS, "--merges", ",".join(merges), "-q",
                 "--format", "json", *args)
    return json.loads(out)


def ppl(cli, merge, group):
    """Means over the tokens of `table`, by `eval ppl`."""
    row, = rows(cli, "ppl", "-f", text_file(cli, "table.txt", 60, 3), *TOKENS, "-L", group, "--merge", merge,
                "--against", "full")
    return row["kl"], row["ppl"]


def close(found, expected):
    assert abs(found - expected) <= 1e-6 * abs(expected), (found, expected)


def test_depths(cli):
    merges = [trained(cli, "g3", "--merge-arch", "gate", "--depth", "3"),
              trained(cli, "d15", "--merge-arch", "direct", "--depth", "15"), trained(cli, "s")]
    found = table(cli, "1", merges, "-L", "4")
    assert found["table"] == 1 and "LongBench" in found["accuracy"] and found["groups"] == [4]
    assert [(r["depth"], r["arch"], r["merge"]) for r in found["rows"]] == [
        (3, "gate", merges[0]), (15, "direct", merges[1]), (None, "score", merges[2])]
    for row, merge in zip(found["rows"], merges):
        kl, perplexity = ppl(cli, merge, "4")
        close(row["kl"], kl)
        close(row["ppl"], perplexity)
        assert row["qasper"] is None and row["multifieldqa_en"] is None and row["2wikimultihopqa"] is None
    assert len({r["kl"] for r in found["rows"]}) == 3
    paper = [[r[f"paper_{n}"] for n in ("qasper", "multifieldqa_en", "2wikimultihopqa")] for r in found["rows"]]
    assert paper == [[38.5, 28.5, 42.0], [48.5, 38.5, 53.0], [None, None, None]]
    full, = rows(cli, "ppl", "-f", text_file(cli, "table.txt", 60, 3), *TOKENS, "--cache", "full")
    close(found["rows"][0]["ppl_full"], full["ppl"])


def test_groups(cli):
    merges = [trained(cli, "s"), trained(cli, "s8", "-L", "8")]
    found = table(cli, "2", merges, "-L", "4,8,16")["rows"]
    assert [r["train_l"] for r in found] == ["4,8", "8"]
    for row, merge in zip(found, merges):
        for group in ("4", "8", "16"):
            kl, perplexity = ppl(cli, merge, group)
            close(row[f"kl_{group}"], kl)
            close(row[f"ppl_{group}"], perplexity)
            assert row[f"accuracy_{group}"] is None


def test_methods(cli):
    merges = [trained(cli, "c", "--mode", "chunked"), trained(cli, "s"), trained(cli, "b", "--boundary", "1")]
    found = table(cli, "3", merges, "-L", "4")["rows"]
    assert [(r["method"], r["mode"]) for r in found] == [("baseline", "chunked"), ("TAI", "tai"),
                                                         ("TAI + boundary", "tai")]
    assert [(r["paper_il"], r["paper_sdi"], r["paper_bsd"]) for r in found] == [
        (.13, .10, .065), (.12, .10, .048), (.11, .08, .041)]
    for row, merge in zip(found, merges):
        measured = rows(cli, "metrics", "-f", text_file(cli, "table.txt", 60, 3), "-n", "90", "--skip", "9", "-L", "4",
                        "--merge", merge)[-1]
        assert measured["layer"] == "mean"
        for name in ("il", "sdi", "bsd", "bsd_log"):
            close(row[name], measured[name])
        close(row["kl"], ppl(cli, merge, "4")[0])


def test_usage(cli):
    merge = trained(cli, "s")
    (cli.folder / "text").write_text("not a merge file, but long enough to be read as one")

    def fails(code, message, *args, number="1", merges=merge):
        cli.fails(code, message, "eval", "table", number, "-m", cli.tiny, "-f", cli.text, "--merges", merges, *args)

    cli.fails(2, "which table", "eval", "table", "-m", cli.tiny, "-f", cli.text, "--merges", merge)
    cli.fails(2, "4", "eval", "table", "4", "-m", cli.tiny, "-f", cli.text, "--merges", merge)
    cli.fails(2, "merges", "eval", "table", "1", "-m", cli.tiny, "-f", cli.text)
    fails(2, "one -L", "-L", "4,8")
    fails(2, "no power of two", "-L", "12")
    fails(2, "too few for -L 512", "-L", "512")
    fails(2, "three --merges", number="3")
    fails(2, "row 1 of table 3", number="3", merges=",".join([merge] * 3))
    fails(2, "more than 16", merges=",".join([merge] * 17))
    fails(3, "none", merges="none")
    fails(3, "text", merges=str(cli.folder / "text"))
    fails(3, "nothing to predict", "--skip", "5000", "-L", "4")


if __name__ == "__main__":
    check.main(globals())
