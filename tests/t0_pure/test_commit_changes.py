"""``commit --change``: an instruction of a Containerfile changes a configuration as podman's does."""

import json

import pytest

from fusestore.store.commit import InvalidChange, change

WAS = {
    "Env": ["PATH=/bin", "A=old"],
    "Labels": {"a": "old", "b": "kept"},
    "ExposedPorts": {"80/tcp": {}},
    "OnBuild": ["RUN one"],
    "Cmd": ["old"],
}

CHANGES = {
    'CMD ["/bin/sh", "-c", "x"]': {"Cmd": ["/bin/sh", "-c", "x"]},
    "CMD echo hello": {"Cmd": ["/bin/sh", "-c", "echo hello"]},
    'CMD=["/bin/sh"]': {"Cmd": ["/bin/sh"]},
    'cmd ["/bin/sh"]': {"Cmd": ["/bin/sh"]},
    'ENTRYPOINT ["/init"]': {"Entrypoint": ["/init"]},
    "ENV A=1": {"Env": ["PATH=/bin", "A=1"]},
    "ENV=A=1": {"Env": ["PATH=/bin", "A=1"]},
    'ENV B="2 3" C=4': {"Env": ["PATH=/bin", "A=old", "B=2 3", "C=4"]},
    "ENV B some words": {"Env": ["PATH=/bin", "A=old", "B=some words"]},
    "ENV E=a=b": {"Env": ["PATH=/bin", "A=old", "E=a=b"]},
    "LABEL a=new c='d e'": {"Labels": {"a": "new", "b": "kept", "c": "d e"}},
    "EXPOSE 8080 53/udp": {"ExposedPorts": {"80/tcp": {}, "8080/tcp": {}, "53/udp": {}}},
    "ONBUILD RUN two": {"OnBuild": ["RUN one", "RUN two"]},
    "STOPSIGNAL SIGKILL": {"StopSignal": "SIGKILL"},
    "USER me:us": {"User": "me:us"},
    "VOLUME /a /b": {"Volumes": {"/a": {}, "/b": {}}},
    'VOLUME ["/a b"]': {"Volumes": {"/a b": {}}},
    "WORKDIR /srv": {"WorkingDir": "/srv"},
}


@pytest.mark.parametrize("instruction", CHANGES)
def test_an_instruction_changes_what_it_names_and_nothing_else(instruction):
    config = json.loads(json.dumps(WAS))
    change(config, instruction)
    assert config == WAS | CHANGES[instruction]


@pytest.mark.parametrize("instruction", CHANGES)
def test_where_there_was_nothing_there_is_only_that(instruction):
    config = {}
    change(config, instruction)
    (key,) = CHANGES[instruction]
    assert list(config) == [key]


BAD = ["", "CMD", "RUN x", "FROM y", "CMD [1]", 'CMD ["a"', "LABEL 'open", "LABEL a=1 b", "VOLUME [", "9 x"]


@pytest.mark.parametrize("instruction", BAD)
def test_what_is_none_is_refused_and_changes_nothing(instruction):
    config = json.loads(json.dumps(WAS))
    with pytest.raises(InvalidChange) as caught:
        change(config, instruction)
    assert "\n" not in str(caught.value)
    assert config == WAS
