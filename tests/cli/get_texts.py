"""The converters of get-texts, and how it treats its folder, without network: get_texts.py GET_TEXTS.

The commands of apt and dpkg are stand-ins that hand out a folder of this test's making.
"""
import hashlib
import importlib.machinery
import importlib.util
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib

PATH = sys.argv.pop(1)
sys.dont_write_bytecode = True
LOADER = importlib.machinery.SourceFileLoader("get_texts", PATH)
texts = importlib.util.module_from_spec(importlib.util.spec_from_loader("get_texts", LOADER))
LOADER.exec_module(texts)


class Converters(unittest.TestCase):
    def test_plain(self):
        self.assertEqual(
            texts.plain("\ufeff\u201cCaf\u00e9\u201d \u2014 it\u2019s\u2026 \u4e2d\x07\t1\r\n\n\n\nend  \n\n"),
            "\"Cafe\" -- it's... \t1\n\nend\n",
        )

    def test_reflow(self):
        self.assertEqual(texts.reflow("a\nb\n\nverse\n  two\n \nc"), "a b\n\nverse\n  two\n\nc")

    def test_html(self):
        page = b"""<html><head><title>No</title><style>x{}</style></head><body>
          <div class="related" role="navigation"><div>Prev</div> next</div>
          <h1>Title<a class="headerlink" href="#x">#</a></h1>
          <p>One &amp; <b>two</b>
             three.<p>Next<br>line
          <ul><li>first</li><li><p>second</p></li></ul>
          <pre>if x:\n    y &lt; 1</pre>
          <table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>
          <script>bad()</script><div class="footer">Copyright</div></body></html>"""
        self.assertEqual(
            texts.plain(texts.from_html(page)),
            "Title\n\nOne & two three.\n\nNext\nline\n\n- first\n- second\n\nif x:\n    y < 1\n\na | b\n1 | 2\n",
        )

    def test_gutenberg(self):
        book = b"Licence\r\n*** START OF THIS BOOK ***\r\n\r\nIt was\r\nso.\r\n\r\n*** END OF THIS BOOK ***\r\nMore\r\n"
        self.assertEqual(texts.from_gutenberg(book).strip(), "It was so.")

    def test_conversation(self):
        said = ['"A?"', '"B."', '"C," he said.']
        text = "\n\n".join(["Alone.", '"One."', "Quiet.", *said, "End."])
        self.assertEqual(texts.conversation(text), "\n\n".join(said))

    def test_r(self):
        lines = ["EMMA", "", "by", "Jane \u00c9"]
        block = b"X\n" + bytes(12) + struct.pack(">II", 16, len(lines))
        for line in lines:
            data = line.encode()
            block += struct.pack(">II", 0x40009, len(data)) + data
        packed = struct.pack(">I", len(block)) + zlib.compress(block)
        self.assertEqual(texts.r_strings(packed * 2), [lines, lines])
        self.assertEqual(texts.from_r(packed), "EMMA\n\nby Jane \u00c9")

    def test_pod(self):
        pod = b"=head2 Why C<$x E<lt> 1>?\n\nSee L<perlop|perlop/x> and B<I<this>>, C<< a->b >>.\n\n"
        pod += b"=over 4\n\n=item 1\n"
        self.assertEqual(texts.from_pod(pod).strip(), "Why $x < 1?\n\nSee perlop and this, a->b.\n\n\n1")

    def test_renpy(self):
        script = b'define l = Character(_("Lucy"))\nlabel a:\n    e "Hi, {b}you{/b}!"\n    show x\n'
        script += b'    l "\\"No\\"" with fade\n'
        self.assertEqual(texts.from_renpy(script), 'Eileen: Hi, you!\nLucy: "No"')


LINE = "The quick brown fox jumps over the lazy dog, and then it sleeps.\n"


class Folder(unittest.TestCase):
    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory()
        self.at = pathlib.Path(self.temporary.name)
        self.package = self.at / "package"
        (self.package / "usr").mkdir(parents=True)
        for page, after in (("1", "3"), ("2", ""), ("3", "2")):
            link = f'<link rel="next" title="x" href="{after}.html">' if after else ""
            (self.package / "usr" / f"{page}.html").write_text(f"{link}<p>page {page}</p><p>{LINE * 800}</p>")
        (self.package / "usr/new.txt").write_text(LINE * 800)
        self.fetched = self.at / "fetched"
        self.stand_in("apt-cache", '[ "$3" = there ] || exit 100; echo "Version: 1.2"; echo "SHA256: $DIGEST"')
        self.stand_in("apt-get", f'echo x >>{self.fetched}; echo deb >there.deb')
        self.stand_in("dpkg-deb", f'cp -r {self.package} "$3"')
        self.environment = dict(os.environ)
        os.environ["PATH"] = f"{self.at / 'bin'}:{os.environ['PATH']}"
        os.environ["DIGEST"] = hashlib.sha256(b"deb\n").hexdigest()
        self.sources = texts.SOURCES
        pages = texts.Work("a", texts.from_html, "usr/*.html", first="usr/1.html")
        texts.SOURCES = [
            ("train/prose", ["gone", "there"], "MIT", [pages]),
            ("eval/prose", ["there"], "MIT", [texts.Work("b", texts.decode, "usr/*.txt")]),
        ]
        self.out = self.at / "out"

    def tearDown(self):
        texts.SOURCES = self.sources
        os.environ.clear()
        os.environ.update(self.environment)
        self.temporary.cleanup()

    def stand_in(self, name, script):
        path = self.at / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def fetches(self):
        return len(self.fetched.read_text().split()) if self.fetched.exists() else 0

    def fails(self, words):
        with self.assertRaisesRegex(texts.Failure, words):
            texts.main(self.out)
        self.assertEqual([p.name for p in self.at.glob(".get-texts*")], [])

    def test_made_once(self):
        texts.main(self.out)
        text = (self.out / "train/prose/a.txt").read_text()
        self.assertEqual([text.index(f"page {n}\n") for n in "132"], sorted(text.index(f"page {n}\n") for n in "132"))
        self.assertEqual((self.out / "eval/prose.txt").read_text(), LINE * 800)
        row = f"| eval/prose.txt | there | 1.2 | MIT | `usr/*.txt` | {len(LINE) * 800} | "
        self.assertIn(row + hashlib.sha256((LINE * 800).encode()).hexdigest(), (self.out / "SOURCES.md").read_text())
        self.assertEqual(self.fetches(), 1)
        texts.main(self.out)
        self.assertEqual(self.fetches(), 1)
        (self.out / "eval/prose.txt").write_text("changed")
        texts.main(self.out)
        self.assertEqual(self.fetches(), 2)
        self.assertEqual((self.out / "eval/prose.txt").read_text(), LINE * 800)

    def test_failures(self):
        os.environ["DIGEST"] = "0" * 64
        self.fails("there has another SHA-256")
        self.stand_in("apt-get", "echo 'E: no network' >&2; exit 100")
        self.fails("did not give there .*no network")
        self.stand_in("apt-cache", "exit 100")
        self.fails("apt knows no package gone or there: run apt-get update")

    def test_too_little(self):
        (self.package / "usr/new.txt").write_text("short")
        self.fails("found no text for b")
        (self.package / "usr/new.txt").write_text(LINE * 100)
        self.fails("eval/prose.txt has .* bytes only")

    def test_folder_of_others(self):
        self.out.mkdir()
        (self.out / "letter").write_text("mine")
        self.fails("has files of others")
        self.assertEqual((self.out / "letter").read_text(), "mine")

    def test_usage(self):
        for arguments, code in (([], 2), (["a", "b"], 2), (["--wrong"], 2), (["--help"], 0)):
            done = subprocess.run([sys.executable, PATH, *arguments], capture_output=True, check=False)
            self.assertEqual(done.returncode, code)
        (self.out).write_text("a file")
        done = subprocess.run([sys.executable, PATH, str(self.out)], capture_output=True, text=True, check=False)
        self.assertEqual((done.returncode, done.stdout), (3, ""))
        self.assertRegex(done.stderr, "^get-texts: .*not a folder\n$")


if __name__ == "__main__":
    unittest.main()
