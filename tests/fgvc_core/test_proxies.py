import os

from fgvc_core.proxies import loopback_direct, socks, without_loopback


def test_loopback_joins_whatever_either_spelling_excludes():
    changed = without_loopback({"NO_PROXY": "a.org, 127.0.0.1", "no_proxy": "b.org"})
    assert changed["NO_PROXY"] == changed["no_proxy"] == "a.org,127.0.0.1,b.org,localhost,::1"


def test_a_socks_proxy_is_emptied_and_an_http_proxy_stays(monkeypatch):
    asked = {
        "ALL_PROXY": "socks5://x:1",
        "https_proxy": "SOCKS4://y:2",
        "HTTPS_PROXY": "http://z:3",
    }
    assert sorted(socks(asked)) == ["ALL_PROXY", "https_proxy"]
    changed = without_loopback(asked)
    assert changed["ALL_PROXY"] == changed["https_proxy"] == ""
    assert "HTTPS_PROXY" not in changed


def test_a_client_of_this_machines_services_is_made_under_a_socks_proxy(monkeypatch):
    import httpx

    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with loopback_direct():
        httpx.Client().close()
        assert "127.0.0.1" in os.environ["NO_PROXY"]
    assert os.environ["ALL_PROXY"] == "socks5://127.0.0.1:9"
    assert "NO_PROXY" not in os.environ
