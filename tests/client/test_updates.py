"""A device takes the newest adapter of the publisher it pinned, or keeps what it has: over real HTTPS."""

from __future__ import annotations

import json
import shutil
import ssl
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.profile import Profile
from client.publisher import Memory, Publisher, pin, pinned
from client.service.engines import opener
from client.service.person import Person
from client.updates import Update, go_back, own_backbone, update
from server.certificates import create_certificates
from server.publishing import publish
from shared.artifacts import ADAPTER_SCHEMA, load_catalogue, save_catalogue
from shared.catalogue import Catalogue
from shared.errors import AdapterError, BackboneError, CatalogueError, DeploymentError, HomerankError, RunError
from shared.releases import ADAPTER_FILES, LATEST, RELEASE_SCHEMA, key_id, key_pem
from shared.schema import Item
from simulations.runfolder import RunFolder
from tests.releases import BACKBONE, KEY, OTHER_KEY, bare_adapter, facts_of, point_to, write_release
from tests.server.programs import program
from tests.server.small_server import whole_run
from tests.simulations.tiny_runs import write_data

SHELF = Catalogue(tuple(Item(id=f"i{n}", title=f"Thing {n}", text=f"a thing {n}") for n in range(4)))


class Site:
    """A web server with TLS on loopback, and the releases it serves."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, []
        self.releases = folder / "www" / "releases"
        self.releases.mkdir(parents=True)
        create_certificates(folder / "tls")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(folder / "tls" / "server.pem", folder / "tls" / "server.key")
        asked: list[str] = self.asked

        class Handler(SimpleHTTPRequestHandler):
            """Files of a folder, and what was asked for."""

            protocol_version = "HTTP/1.1"  # one handshake for all files

            def do_GET(self) -> None:
                asked.append(self.path)
                if self.path.startswith("/elsewhere/"):
                    self.send_response(302)
                    self.send_header("location", self.path.replace("/elsewhere/", "/releases/"))
                    self.send_header("content-length", "0")
                    self.end_headers()
                else:
                    super().do_GET()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder / "www")))
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server.server_address[1]}/releases"

    @property
    def ca(self) -> str:
        return (self.folder / "tls" / "ca.pem").read_text()

    def release(self, version: int, *, value: float | None = None, latest: bool = True, **changed: Any) -> Path:
        """Put a small release there."""
        folder = bare_adapter(
            self.releases / str(version), value=version if value is None else value, catalogue=SHELF.fingerprint
        )
        write_release(folder, {**facts_of(folder, version), **changed})
        if latest:
            point_to(self.releases, version)
        return folder

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "site")
    yield made
    made.close()


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    opened = Profile.open(tmp_path / "home")
    save_catalogue(SHELF, opened.catalogue)
    return opened


class Device:
    """A profile whose ranker takes any adapter, unless `wrong` says why not."""

    def __init__(self, profile: Profile, site: Site) -> None:
        self.profile = profile
        self.publisher = Publisher(site.url, site.ca, key_pem(KEY.public_key()))
        self.wrong: Callable[[Path], None] = lambda folder: None
        self.installs = 0

    def install(self, folder: Path) -> None:
        """As `Person.install` leaves the folders."""
        self.installs += 1
        assert sorted(path.name for path in folder.iterdir()) == sorted(ADAPTER_FILES)
        place = self.profile.adapter
        if place.exists():
            shutil.rmtree(place.with_name("adapter.previous"), ignore_errors=True)
            place.rename(place.with_name("adapter.previous"))
        shutil.copytree(folder, place)
        self.wrong(place)

    def update(self, **changed: Any) -> Update:
        given = {"install": self.install, "backbone_of": lambda name: BACKBONE, **changed}
        return update(self.profile, given.pop("publisher", self.publisher), **given)

    @property
    def memory(self) -> tuple[int, int]:
        known = Memory.load(self.profile, self.publisher.key_id)
        return known.installed, known.seen

    @property
    def adapter(self) -> bytes | None:
        place = self.profile.adapter / "adapter_model.safetensors"
        return place.read_bytes() if place.exists() else None


@pytest.fixture
def device(profile: Profile, site: Site) -> Device:
    return Device(profile, site)


# --- newer and older ---------------------------------------------------------------------------------------


def test_the_newest_release_is_installed_once(device: Device, site: Site) -> None:
    folder = site.release(1)
    done = device.update()
    assert (done.version, done.before, done.new, done.statement) == (1, 0, True, "No privacy.")
    assert device.adapter == (folder / "adapter_model.safetensors").read_bytes()
    site.asked.clear()
    assert device.update() == Update(1, 1, new=False)
    assert (device.installs, site.asked) == (1, [f"/releases/{LATEST}"])


def test_a_device_that_was_away_for_fifty_versions_catches_up_in_one_step(device: Device, site: Site) -> None:
    site.release(1)
    device.update()
    for version in range(2, 52):
        site.release(version)
    site.asked.clear()
    done = device.update()
    assert (done.before, done.version, device.memory, device.installs) == (1, 51, (51, 51), 2)
    assert len(site.asked) == 3 + len(ADAPTER_FILES)
    assert {path.split("/")[2] for path in site.asked} == {LATEST, "51"}
    assert device.adapter == (site.releases / "51" / "adapter_model.safetensors").read_bytes()


def test_an_older_release_is_never_taken_even_after_going_back(device: Device, site: Site) -> None:
    site.release(6)
    device.update()
    site.release(7)
    device.update()
    go_back(device.profile, install=device.install)
    assert device.adapter == (site.releases / "6" / "adapter_model.safetensors").read_bytes()
    assert device.update() == Update(7, 7, new=False)  # the same release is not forced upon its owner again
    point_to(site.releases, 6)
    with pytest.raises(AdapterError, match="found release 6; expected one after 7, which was installed here"):
        device.update()
    shutil.rmtree(device.profile.adapter)
    with pytest.raises(AdapterError, match="found release 6; expected one after 7"):
        device.update()


def test_an_adapter_that_was_removed_may_be_installed_again(device: Device, site: Site) -> None:
    site.release(7)
    device.update()
    shutil.rmtree(device.profile.adapter)
    assert device.update().new
    assert device.memory == (7, 7)


def test_a_release_that_was_only_offered_shuts_out_older_ones_too(device: Device, site: Site) -> None:
    """So a server cannot show a new version and then hand out another before it."""
    site.release(9)
    (site.releases / "9" / "privacy.json").write_text("{}")
    with pytest.raises(AdapterError):
        device.update()
    assert device.memory == (0, 9)
    site.release(8)
    with pytest.raises(AdapterError, match="found release 8; the server offered 9 before"):
        device.update()
    site.release(9)
    assert device.update().version == 9


def test_an_old_release_under_a_new_number_is_noticed(device: Device, site: Site) -> None:
    shutil.copytree(site.release(3), site.releases / "4")
    point_to(site.releases, 4)
    with pytest.raises(AdapterError, match="found release 3 in the place of 4"):
        device.update()
    assert device.memory == (0, 0)


# --- what is refused, and that nothing is left of it -------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("harm", [flip, cut, lengthen, Path.unlink], ids=["flipped", "cut", "longer", "gone"])
@pytest.mark.parametrize("name", [*ADAPTER_FILES, "release.json", "release.sig"])
def test_a_harmed_file_changes_nothing(device: Device, site: Site, name: str, harm: Callable[[Path], None]) -> None:
    site.release(1)
    device.update()
    before = device.adapter
    harm(site.release(2) / name)
    with pytest.raises(AdapterError):
        device.update()
    assert (device.adapter, device.memory[0], device.installs) == (before, 1, 1)
    assert not (device.profile.folder / ".release.new").exists()


def test_another_publishers_release_is_refused_before_it_is_read(device: Device, site: Site) -> None:
    folder = site.release(1)
    write_release(folder, facts_of(folder, 1), OTHER_KEY)
    with pytest.raises(AdapterError, match="comes from somebody else"):
        device.update()
    assert device.memory == (0, 0)
    assert len(site.asked) == 3


def test_a_release_for_other_items_is_refused_before_it_is_fetched(device: Device, site: Site) -> None:
    site.release(1, catalogue="d" * 64)
    with pytest.raises(AdapterError, match="for another catalogue"):
        device.update()
    assert len(site.asked) == 3


def test_a_release_for_another_backbone_is_refused_before_it_is_fetched(device: Device, site: Site) -> None:
    site.release(1)
    with pytest.raises(AdapterError, match="for another backbone"):
        device.update(backbone_of=lambda name: "d" * 64)

    def unknown(name: str) -> str:
        raise BackboneError(f"found backbone {name!r}")

    with pytest.raises(AdapterError, match="lacks its backbone: found backbone 'tiny-bert'"):
        device.update(backbone_of=unknown)
    assert device.installs == 0


@pytest.mark.parametrize(("step", "said"), [(1, "update homerank on this device"), (-1, "the server is behind")])
@pytest.mark.parametrize(("field", "known"), [("schema", RELEASE_SCHEMA), ("adapter_schema", ADAPTER_SCHEMA)])
def test_a_release_of_another_version_is_refused_before_it_is_fetched(
    device: Device, site: Site, field: str, known: int, step: int, said: str
) -> None:
    """A server one version ahead or behind: the device says which side to update, and ranks on."""
    site.release(1)
    device.update()
    before, asked = device.adapter, len(site.asked)
    site.release(2, value=7.0, **{field: known + step})
    with pytest.raises(AdapterError, match=rf"schema {known + step}; this version reads {known}.*{said}"):
        device.update()
    assert (device.adapter, device.memory[0], device.installs) == (before, 1, 1)
    assert len(site.asked) == asked + 3


def test_a_device_without_torch_is_told_what_it_can_do(
    device: Device, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.release(1)
    monkeypatch.setattr("client.updates.importlib.util.find_spec", lambda name: None)
    with pytest.raises(AdapterError, match=r"found no torch.*export-model"):
        device.update(backbone_of=own_backbone)
    assert len(site.asked) == 3


def test_a_file_outside_the_release_is_never_asked_for(device: Device, site: Site) -> None:
    folder = site.release(1)
    facts = facts_of(folder, 1)
    facts["files"]["../../../secret"] = facts["files"]["privacy.json"]
    write_release(folder, facts)
    with pytest.raises(AdapterError, match="among the files"):
        device.update()
    assert not any("secret" in path for path in site.asked)


@pytest.mark.parametrize("version", [0, -1, "7", 1.5, None, "../../etc", 10**400])
def test_a_hint_that_is_no_version_is_refused(device: Device, site: Site, version: Any) -> None:
    point_to(site.releases, version)
    with pytest.raises(AdapterError, match=r"latest\.json|answer 404"):
        device.update()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"schema": 2, "version": 1}', b"x" * 5000])
def test_a_hint_that_is_none_is_refused(device: Device, site: Site, content: bytes) -> None:
    (site.releases / LATEST).write_bytes(content)
    with pytest.raises(AdapterError, match=r"latest\.json"):
        device.update()


# --- self-check and roll-back ------------------------------------------------------------------------------


def test_a_failed_self_check_leaves_the_adapter_before(device: Device, site: Site) -> None:
    """The ranker refuses after the folders were exchanged: they are put back."""
    site.release(1)
    device.update()
    before = device.adapter
    site.release(2)

    def refuse(place: Path) -> None:
        raise AdapterError("found an adapter whose content part is not one finite number for each item")

    device.wrong = refuse
    with pytest.raises(
        AdapterError, match="release 2 is not used, the adapter before goes on ranking: found an adapter"
    ):
        device.update()
    assert (device.adapter, device.memory) == (before, (1, 2))
    device.wrong = lambda place: None
    assert device.update().version == 2  # it may be tried again


def test_an_installation_that_did_not_arrive_whole_is_undone(device: Device, site: Site) -> None:
    site.release(1)
    device.update()
    before = device.adapter
    site.release(2)
    device.wrong = lambda place: (place / "privacy.json").unlink()
    with pytest.raises(AdapterError, match="did not arrive whole"):
        device.update()
    assert device.adapter == before


def test_a_first_release_that_fails_leaves_nothing(device: Device, site: Site) -> None:
    site.release(1)
    device.wrong = lambda place: (place / "privacy.json").unlink()
    with pytest.raises(AdapterError):
        device.update()
    assert device.adapter is None


def test_going_back_needs_an_adapter_before(device: Device, site: Site) -> None:
    with pytest.raises(AdapterError, match="found no adapter before this one"):
        go_back(device.profile, install=device.install)
    site.release(1)
    device.update()
    site.release(2)
    device.update()
    assert go_back(device.profile, install=device.install) == "run r, round 3"
    go_back(device.profile, install=device.install)  # and forth
    assert device.adapter == (site.releases / "2" / "adapter_model.safetensors").read_bytes()


# --- the connection ----------------------------------------------------------------------------------------


def test_a_server_of_another_authority_is_not_believed(device: Device, site: Site, tmp_path: Path) -> None:
    site.release(1)
    create_certificates(tmp_path / "other")
    other = Publisher(site.url, (tmp_path / "other" / "ca.pem").read_text(), device.publisher.key)
    with pytest.raises(DeploymentError, match="no certificate of the pinned authority"):
        device.update(publisher=other)
    with pytest.raises(DeploymentError, match="no certificate of the pinned authority"):
        device.update(publisher=Publisher(site.url, "", device.publisher.key))  # nor by the system's
    assert site.asked == []


def test_a_certificate_is_for_a_name(device: Device, site: Site) -> None:
    url = site.url.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(DeploymentError):
        device.update(publisher=Publisher(url, site.ca, device.publisher.key))


def test_no_server_no_change(device: Device, site: Site) -> None:
    publisher = Publisher("https://127.0.0.1:9/releases", site.ca, device.publisher.key)
    with pytest.raises(DeploymentError, match="it is not reachable"):
        device.update(publisher=publisher)


def test_no_proxy_of_the_environment_and_no_redirection_is_followed(
    device: Device, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.release(1)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert device.update().new
    elsewhere = Publisher(site.url.replace("/releases", "/elsewhere"), site.ca, device.publisher.key)
    with pytest.raises(AdapterError, match="found answer 302"):
        device.update(publisher=elsewhere)


def test_a_full_disk_is_found_before_the_download(device: Device, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.release(1)
    usage = shutil.disk_usage(site.folder)._replace(free=10)
    monkeypatch.setattr("client.updates.shutil.disk_usage", lambda path: usage)
    with pytest.raises(RunError, match="found 10 bytes free"):
        device.update()
    assert len(site.asked) == 3


def test_two_updates_at_once_are_one(device: Device, site: Site) -> None:
    site.release(1)

    def again(place: Path) -> None:
        with pytest.raises(DeploymentError, match="another update under way"):
            device.update()

    device.wrong = again
    assert device.update().new


def test_a_catalogue_comes_first(device: Device, site: Site) -> None:
    site.release(1)
    device.profile.catalogue.unlink()
    with pytest.raises(CatalogueError, match="found no catalogue yet"):
        device.update()


# --- what is pinned and remembered -------------------------------------------------------------------------


def test_what_is_pinned_stays_until_its_owner_removes_it(device: Device, site: Site) -> None:
    with pytest.raises(DeploymentError, match="update --pin"):
        pinned(device.profile)
    pin(device.profile, device.publisher)
    assert pinned(device.profile) == device.publisher
    assert pinned(device.profile, url="https://other/releases").url == "https://other/releases"
    assert (device.profile.folder / "publisher.json").stat().st_mode & 0o777 == 0o600
    pin(device.profile, Publisher("https://moved/releases", site.ca, device.publisher.key))
    assert pinned(device.profile).url == "https://moved/releases"
    with pytest.raises(DeploymentError, match=f"{key_id(OTHER_KEY.public_key())} is another"):
        pin(device.profile, Publisher(site.url, site.ca, key_pem(OTHER_KEY.public_key())))
    (device.profile.folder / "publisher.json").unlink()
    pin(device.profile, Publisher(site.url, site.ca, key_pem(OTHER_KEY.public_key())))


@pytest.mark.parametrize(
    "url",
    [
        "http://host/releases",
        "https://",
        "host",
        "",
        "https://user@host/r",
        "https://host/r?x=1",
        "file:///etc",
        "ftp://h",
    ],
)
def test_only_https_addresses_are_pinned(device: Device, url: str) -> None:
    with pytest.raises(DeploymentError, match="expected https://"):
        pin(device.profile, Publisher(url, device.publisher.ca, device.publisher.key))


def test_a_new_key_begins_a_new_count_and_the_old_one_is_not_forgotten(device: Device) -> None:
    Memory(7, 8).save(device.profile, "old")
    Memory(1, 1).save(device.profile, "new")
    assert Memory.load(device.profile, "old") == Memory(7, 8)
    assert Memory.load(device.profile, "other") == Memory(0, 0)


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"schema": 2, "keys": {}}', '{"schema": 1, "keys": {"KEY": {"installed": "7", "seen": 7}}}', "{"],
)
def test_a_damaged_memory_lets_nothing_pass(device: Device, site: Site, content: str) -> None:
    site.release(1)
    (device.profile.folder / "releases.json").write_text(content.replace("KEY", device.publisher.key_id))
    with pytest.raises(AdapterError, match="an old one could pass as new"):
        device.update()


def test_forgetting_a_person_does_not_forget_how_new_releases_were(device: Device, site: Site) -> None:
    site.release(5)
    device.update()
    device.profile.forget(device.profile.journal(load_catalogue(device.profile.catalogue)))
    assert device.memory == (5, 5)


# --- with the real ranker ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    """A finished private run on a tiny backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMERANK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        data = write_data(tmp_path_factory.mktemp("data") / "tiny", users=6, items=40)
        yield whole_run(tmp_path_factory.mktemp("run"), data)


@pytest.fixture
def place(site: Site, trained: RunFolder, tmp_path: Path) -> Path:
    """A publisher's folder that the site serves."""
    shutil.copytree(site.folder / "tls", tmp_path / "deployment")
    site.releases.rmdir()
    site.releases.symlink_to(tmp_path / "deployment" / "releases")
    publish(tmp_path / "deployment", trained.path, simulation=True, url=site.url)
    return tmp_path / "deployment"


def adapter_that(place: Path, trained: RunFolder, *, run: str) -> None:
    """Publish the same parameters under the name of another run; its ledger is looked at elsewhere."""
    copy = place / "copy"
    shutil.copytree(trained.path, copy)
    manifest = json.loads((copy / "adapter" / "homerank.json").read_text())
    (copy / "adapter" / "homerank.json").write_text(json.dumps({**manifest, "outcome": {"reason": run}}))
    publish(place, copy, simulation=True)
    shutil.rmtree(copy)


def test_a_person_ranks_with_what_an_operator_published(
    place: Path, trained: RunFolder, tmp_path: Path, own_cache: Path
) -> None:
    profile = Profile.open(tmp_path / "home")
    save_catalogue(trained.catalogue, profile.catalogue)
    pin(profile, Publisher.read(place / "publisher.json"))
    person = Person(profile, engine=opener())
    try:
        done = update(profile, pinned(profile), install=person.install, backbone_of=own_backbone)
        assert (done.version, done.new) == (1, True)
        assert person.shop.engine.adapter["round"] == 3
        assert done.release is not None
        assert "differentially private" in done.statement
        assert done.statement == json.loads((profile.adapter / "privacy.json").read_text())["statement"]
        adapter_that(place, trained, run="second")
        assert update(profile, pinned(profile), install=person.install, backbone_of=own_backbone).version == 2
        assert person.shop.engine.adapter["outcome"] == {"reason": "second"}
        go_back(profile, install=person.install)
        assert person.shop.engine.adapter["outcome"] != {"reason": "second"}
    finally:
        person.close()


def test_the_rankers_own_self_check_rolls_a_release_back(
    place: Path, trained: RunFolder, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Profile.open(tmp_path / "home")
    save_catalogue(trained.catalogue, profile.catalogue)
    publisher = Publisher.read(place / "publisher.json")
    person = Person(profile, engine=opener())
    try:
        update(profile, publisher, install=person.install, backbone_of=own_backbone)
        held, files = person.shop.engine.adapter, {p.name: p.read_bytes() for p in profile.adapter.iterdir()}
        adapter_that(place, trained, run="second")

        def fails(self: object) -> None:
            raise AdapterError("found an adapter whose content part is not one finite number for each of 40 items")

        monkeypatch.setattr("client.session.Snapshot.check", fails)
        with pytest.raises(AdapterError, match="release 2 is not used, the adapter before goes on ranking"):
            update(profile, publisher, install=person.install, backbone_of=own_backbone)
        assert person.shop.engine.adapter == held
        assert {path.name: path.read_bytes() for path in profile.adapter.iterdir()} == files
        assert not (profile.folder / ".adapter.new").exists()
    finally:
        person.close()


def test_a_disk_that_fills_up_while_installing_leaves_the_ranker_as_it_was(
    place: Path, trained: RunFolder, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Profile.open(tmp_path / "home")
    save_catalogue(trained.catalogue, profile.catalogue)
    person = Person(profile, engine=opener())

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    try:
        with monkeypatch.context() as patch:
            patch.setattr("client.service.person.shutil.copytree", full)
            with pytest.raises(RunError, match="the adapter in use stays"):
                person.install(trained.path / "adapter")
        assert person.shop.engine.adapter == {}
        assert not profile.adapter.exists()
    finally:
        person.close()


def test_the_command_pins_updates_and_goes_back(
    place: Path, trained: RunFolder, tmp_path: Path, own_cache: Path
) -> None:
    home = ["--home", str(tmp_path / "home")]
    profile = Profile.open(tmp_path / "home")
    save_catalogue(trained.catalogue, profile.catalogue)
    cli = CliRunner()
    refused = cli.invoke(app, ["update", *home])
    assert isinstance(refused.exception, HomerankError)
    done = cli.invoke(app, ["update", "--pin", str(place / "publisher.json"), *home, "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["version"], facts["before"], facts["new"], facts["origin"]) == (1, 0, True, "simulation")
    assert "differentially private" in facts["privacy"]
    assert cli.invoke(app, ["update", *home]).stdout == "release 1 is the newest and installed\n"
    adapter_that(place, trained, run="second")
    assert "installed release 2 after 1" in cli.invoke(app, ["update", *home]).stdout
    assert "the adapter before ranks again" in cli.invoke(app, ["update", "--back", *home]).stdout
    assert json.loads(cli.invoke(app, ["update", *home, "--json"]).stdout) == {"version": 2, "before": 2, "new": False}


@pytest.mark.slow
def test_a_running_service_changes_to_a_release_without_a_pause(
    place: Path, trained: RunFolder, tmp_path: Path, own_cache: Path
) -> None:
    """The command finds the service, which ranks with the new adapter and goes on answering."""
    home = str(tmp_path / "home")
    profile = Profile.open(tmp_path / "home")
    save_catalogue(trained.catalogue, profile.catalogue)
    pin(profile, Publisher.read(place / "publisher.json"))
    serving = ("client", "serve", "--home", home, "--port", "0", "--no-training")
    with program(*serving, expect=143) as facts:
        headers = {"authorization": f"Bearer {facts['page'].partition('token=')[2]}"}
        with httpx.Client(base_url=facts["url"], headers=headers, trust_env=False, timeout=60) as service:
            assert service.get("/v1/status").json()["adapter"] == {}
            done = CliRunner().invoke(app, ["update", "--home", home, "--json"])
            assert done.exit_code == 0, done.output
            assert json.loads(done.stdout)["version"] == 1
            assert service.get("/v1/status").json()["adapter"]["round"] == "3"
            assert len(service.post("/v1/recommend", json={"k": 5}).json()["slate"]) == 5
