"""What S3 offers beyond a file system: conditional puts, pages of a listing, deletion in bulk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fsspec import AbstractFileSystem

from vitcore.storage.retry import patiently, status_of
from vitcore.storage.urls import filesystem, scheme

PART = 16 * 2**20  # bytes of a part of an upload
PARTS_AT_ONCE = 4  # in memory, besides
_MOST_PARTS = 10_000  # that the protocol allows in an object


def is_s3(url: str) -> bool:
    """Whether the URL names an object of an S3 store."""
    return scheme(url) in ("s3", "s3a")


def upload_options(size: int) -> dict[str, int]:
    """How fsspec shall split an upload of `size` bytes: few enough parts, and few of them in memory."""
    return {"chunksize": max(PART, -(-size // _MOST_PARTS)), "max_concurrency": PARTS_AT_ONCE}


@dataclass(frozen=True)
class Head:
    """What a store tells of an object without its content."""

    etag: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class Place:
    """An object, or the beginning of many objects' keys. Every method is one request and is not tried again."""

    fs: AbstractFileSystem
    bucket: str
    key: str

    @classmethod
    def of(cls, url: str) -> Place:
        """The place a URL names."""
        fs, path = filesystem(url)
        bucket, key, _ = fs.split_path(path)
        return cls(fs, bucket, key)

    @property
    def store(self) -> str:
        """The endpoint that answers for this place."""
        return str(self.fs.s3.meta.endpoint_url)

    def head(self) -> Head | None:
        """The object's tag and metadata; None where there is no object."""
        try:
            found = self._call("head_object")
        except FileNotFoundError:
            return None
        return Head(found["ETag"], dict(found.get("Metadata", {})))

    def put(self, data: bytes, metadata: dict[str, str], expected: str | None) -> bool:
        """Put the object if its tag is the expected one (None: if there is no object); False where it is not.

        False is also the answer where an earlier try of the same put came through unnoticed.
        """
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        try:
            self._call("put_object", Body=data, Metadata=metadata, **condition)
        except FileNotFoundError:
            if expected is None:
                raise  # there is no such bucket
            return False
        except OSError as error:
            if status_of(error) == 412:
                return False
            raise
        return True

    def delete(self) -> None:
        """Delete the object; nothing happens where there is none."""
        self._call("delete_object")

    def below(self, url: str) -> Iterator[list[dict[str, Any]]]:
        """What lies below this place as a folder, a page of at most 1,000 objects at a time; tries again by itself.

        Args:
            url: of this place, for messages.
        """
        prefix = self.key.rstrip("/") + "/" if self.key else ""
        more: dict[str, str] = {}
        while True:
            page = patiently(
                url,
                "listed",
                lambda: self.fs.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=prefix, **more),  # noqa: B023 called at once
            )
            yield page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete_keys(self, keys: list[str]) -> None:
        """Delete objects of this bucket, at most 1,000.

        Raises:
            OSError: the store kept some.
        """
        answer = self.fs.call_s3(
            "delete_objects", Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
        )
        kept = answer.get("Errors", [])
        if kept:
            raise OSError(f"{len(kept)} objects remained, {kept[0].get('Key')} for one: {kept[0].get('Code')}")

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.fs.call_s3(method, Bucket=self.bucket, Key=self.key, **arguments)
        return answer


def remove(url: str) -> None:
    """Delete an object, and everything below it as a folder."""
    place = Place.of(url)
    if place.key:
        patiently(url, "removed", place.delete)
    for page in place.below(url):
        keys = [found["Key"] for found in page]
        if keys:
            patiently(url, "removed", lambda: place.delete_keys(keys))  # noqa: B023 called at once
