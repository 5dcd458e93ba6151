from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServerHead(_message.Message):
    __slots__ = ("sequence", "hash", "root", "time", "signature")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    hash: str
    root: bytes
    time: int
    signature: str
    def __init__(self, sequence: _Optional[int] = ..., hash: _Optional[str] = ..., root: _Optional[bytes] = ..., time: _Optional[int] = ..., signature: _Optional[str] = ...) -> None: ...

class GetAccountRequest(_message.Message):
    __slots__ = ("site",)
    SITE_FIELD_NUMBER: _ClassVar[int]
    site: str
    def __init__(self, site: _Optional[str] = ...) -> None: ...

class GetAccountResponse(_message.Message):
    __slots__ = ("sites", "federation", "head")
    SITES_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    sites: _containers.RepeatedCompositeFieldContainer[SiteAccount]
    federation: FederationAccount
    head: ServerHead
    def __init__(self, sites: _Optional[_Iterable[_Union[SiteAccount, _Mapping]]] = ..., federation: _Optional[_Union[FederationAccount, _Mapping]] = ..., head: _Optional[_Union[ServerHead, _Mapping]] = ...) -> None: ...

class SiteAccount(_message.Message):
    __slots__ = ("site", "epsilon", "budget", "delta", "unit", "rows", "not_private", "seen_sequence", "seen_hash", "alarms", "node_key")
    SITE_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NOT_PRIVATE_FIELD_NUMBER: _ClassVar[int]
    SEEN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEEN_HASH_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    NODE_KEY_FIELD_NUMBER: _ClassVar[int]
    site: str
    epsilon: float
    budget: float
    delta: float
    unit: str
    rows: int
    not_private: str
    seen_sequence: int
    seen_hash: str
    alarms: _containers.RepeatedCompositeFieldContainer[Alarm]
    node_key: str
    def __init__(self, site: _Optional[str] = ..., epsilon: _Optional[float] = ..., budget: _Optional[float] = ..., delta: _Optional[float] = ..., unit: _Optional[str] = ..., rows: _Optional[int] = ..., not_private: _Optional[str] = ..., seen_sequence: _Optional[int] = ..., seen_hash: _Optional[str] = ..., alarms: _Optional[_Iterable[_Union[Alarm, _Mapping]]] = ..., node_key: _Optional[str] = ...) -> None: ...

class FederationAccount(_message.Message):
    __slots__ = ("disjoint", "overlap", "overlap_sites", "delta", "sites")
    DISJOINT_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_SITES_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    disjoint: float
    overlap: float
    overlap_sites: int
    delta: float
    sites: int
    def __init__(self, disjoint: _Optional[float] = ..., overlap: _Optional[float] = ..., overlap_sites: _Optional[int] = ..., delta: _Optional[float] = ..., sites: _Optional[int] = ...) -> None: ...

class Alarm(_message.Message):
    __slots__ = ("time", "what")
    TIME_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    time: int
    what: str
    def __init__(self, time: _Optional[int] = ..., what: _Optional[str] = ...) -> None: ...

class StreamEntriesRequest(_message.Message):
    __slots__ = ("from_sequence", "limit")
    FROM_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    from_sequence: int
    limit: int
    def __init__(self, from_sequence: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class StreamEntriesResponse(_message.Message):
    __slots__ = ("head", "rows")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    head: ServerHead
    rows: _containers.RepeatedCompositeFieldContainer[EntryRow]
    def __init__(self, head: _Optional[_Union[ServerHead, _Mapping]] = ..., rows: _Optional[_Iterable[_Union[EntryRow, _Mapping]]] = ...) -> None: ...

class EntryRow(_message.Message):
    __slots__ = ("hash", "kind", "body")
    HASH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    hash: str
    kind: str
    body: str
    def __init__(self, hash: _Optional[str] = ..., kind: _Optional[str] = ..., body: _Optional[str] = ...) -> None: ...

class VerifyInclusionRequest(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class VerifyInclusionResponse(_message.Message):
    __slots__ = ("hash", "path", "head")
    HASH_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    hash: str
    path: _containers.RepeatedScalarFieldContainer[bytes]
    head: ServerHead
    def __init__(self, hash: _Optional[str] = ..., path: _Optional[_Iterable[bytes]] = ..., head: _Optional[_Union[ServerHead, _Mapping]] = ...) -> None: ...

class VerifyConsistencyRequest(_message.Message):
    __slots__ = ("sequence", "size")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    size: int
    def __init__(self, sequence: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class VerifyConsistencyResponse(_message.Message):
    __slots__ = ("path", "head")
    PATH_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    path: _containers.RepeatedScalarFieldContainer[bytes]
    head: ServerHead
    def __init__(self, path: _Optional[_Iterable[bytes]] = ..., head: _Optional[_Union[ServerHead, _Mapping]] = ...) -> None: ...

class SubmitHeadRequest(_message.Message):
    __slots__ = ("sequence", "hash", "seen_sequence", "seen_hash", "time", "signature")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SEEN_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SEEN_HASH_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    hash: str
    seen_sequence: int
    seen_hash: str
    time: int
    signature: str
    def __init__(self, sequence: _Optional[int] = ..., hash: _Optional[str] = ..., seen_sequence: _Optional[int] = ..., seen_hash: _Optional[str] = ..., time: _Optional[int] = ..., signature: _Optional[str] = ...) -> None: ...

class SubmitHeadResponse(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: ServerHead
    def __init__(self, head: _Optional[_Union[ServerHead, _Mapping]] = ...) -> None: ...
