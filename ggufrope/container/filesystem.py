"""Every operation that an edit performs on files, behind one small class.

The store, the journal and the recovery touch files through a `FileLayer` alone, so that a test can
pass one that fails, falls short or stops at the N-th operation, and see what is left on disk.
Offsets are absolute; nothing relies on a file position. What the standard library lacks (ranges
inserted and removed, shared blocks, writing that begins early) is called through ctypes and
`fcntl`, on the systems that have it: this module can be imported on all of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeAlias

from ggufrope._files import storage
from ggufrope.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Mode: TypeAlias = Literal["rb", "r+b"]

COPY_CHUNK = 16 << 20
"""Most bytes that one call copies, so that progress is shown and an interrupt takes effect."""

_BUFFER = 1 << 20

UNSUPPORTED = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EXDEV}
)
"""What a system call answers where the file system or the pair of files does not allow it."""


class RefusedError(Exception):
    """The system refused an operation before anything changed, and another strategy may work.

    It never leaves the container package.
    """


class BusyError(StorageError):
    """Another process has the file locked, or has just exchanged it: it will be done soon."""


class FileLayer:
    """The files of the operating system."""

    @property
    def clones_whole_files(self) -> bool:
        """Whether to use `clone_file` instead of `clone_range`."""
        return sys.platform == "darwin"

    def open(self, path: Path, mode: Mode) -> BinaryIO:
        return path.open(mode, buffering=0)

    def set_mode(self, path: Path, mode: int) -> None:
        path.chmod(mode)

    def create(self, path: Path) -> BinaryIO:
        """Create a file that must not exist yet, for its owner alone, and open it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        for flag in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
            flags |= getattr(os, flag, 0)
        return os.fdopen(os.open(path, flags, 0o600), "r+b", buffering=0)

    def try_lock(self, file: BinaryIO, *, shared: bool) -> bool:
        """Lock an open file without waiting; return False where another process has it locked.

        Raises OSError where the file system has no locks. On Windows nothing is locked: there an
        open file cannot be replaced anyway.
        """
        try:
            import fcntl
        except ImportError:
            return True
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(file.fileno(), kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self, file: BinaryIO, offset: int, length: int) -> bytes:
        """Read `length` bytes; fewer only at the end of the file."""
        file.seek(offset)
        pieces = []
        while length and (piece := file.read(length)):
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def write(self, file: BinaryIO, offset: int, data: bytes | memoryview) -> int:
        """Write some of `data` and return how many bytes; `write_all` writes the rest."""
        file.seek(offset)
        return file.write(data)

    def resize(self, file: BinaryIO, size: int) -> None:
        file.truncate(size)

    def sync(self, file: BinaryIO) -> None:
        os.fsync(file.fileno())

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable. Windows has no such call and needs none."""
        if os.name == "nt":
            return
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def release(self, *opened: BinaryIO) -> None:
        """Close files whose names are to change or go, on Windows, which lets no open file do so.

        Elsewhere they stay open, and locked.
        """
        if os.name == "nt":
            for file in opened:
                file.close()

    def replace(self, source: Path, target: Path) -> None:
        source.replace(target)

    def place(self, source: Path, target: Path) -> None:
        """Rename a file to a name that is free. Raises FileExistsError where it is not."""
        _rename_to_free_name(source, target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def copy(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> int:
        """Copy some of `length` bytes between files; at the server where a server has them.

        Return how many bytes were copied; 0 only at the end of the source. On a local disk the
        kernel's own copy moves single pages, and large reads and writes are twice as fast.
        """
        if sys.platform == "linux" and _file_system(target) in _COPIES_AT_THE_SERVER:
            try:
                return os.copy_file_range(
                    source.fileno(), target.fileno(), length, source_offset, offset
                )
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        buffer = memoryview(bytearray(min(length, _BUFFER)))
        done = 0
        while done < length:
            source.seek(source_offset + done)
            count = source.readinto(buffer[: length - done])  # type: ignore[attr-defined]
            if not count:
                break
            done += self.write(target, offset + done, buffer[:count])
        return done

    def allocate(self, file: BinaryIO, size: int) -> None:
        """Give a new file its size and its blocks at once, where the file system can.

        Writing is faster then, and a full disk shows before anything is written.
        """
        if sys.platform == "linux":
            try:
                _fallocate(file.fileno(), 0, 0, size)
            except OSError as error:
                if error.errno not in {*UNSUPPORTED, errno.EINTR}:
                    raise

    def begin_writing(self, file: BinaryIO, offset: int, length: int) -> None:
        """Let the disk take what was written while more is: `sync` then has less to wait for.

        A hint; an error shows when the file is synced.
        """
        if sys.platform == "linux":
            libc = ctypes.CDLL(None)
            libc.sync_file_range(
                file.fileno(), ctypes.c_int64(offset), ctypes.c_int64(length), _WRITE
            )

    def block_size(self, path: Path) -> int:
        """Return the unit in which ranges near `path` are inserted, removed and shared."""
        return os.statvfs(path.parent).f_bsize if hasattr(os, "statvfs") else 4096

    def free_bytes(self, path: Path) -> int:
        """Return how many bytes can still be written beside `path`."""
        import shutil

        return shutil.disk_usage(path.parent).free

    def insert_refusal(self, path: Path) -> str | None:
        """Return why no range can be inserted into the file at `path`, or None where it can."""
        if sys.platform != "linux":
            return "only Linux has fallocate"
        block = self.block_size(path)
        return _refusal(path.parent, block, lambda fd: _fallocate(fd, _INSERT_RANGE, 0, block))

    def clone_refusal(self, path: Path) -> str | None:
        """Return why files beside `path` cannot share blocks, or None where they can.

        On macOS nothing is tried: APFS clones, and another file system refuses when it comes to it.
        """
        if sys.platform == "darwin":
            return None
        if sys.platform != "linux":
            return "this system shares no blocks between files"
        block = self.block_size(path)
        return _refusal(path.parent, block, lambda fd: _clone_range(fd, 0, block, fd, 2 * block))

    def insert_range(self, file: BinaryIO, offset: int, length: int) -> None:
        """Make room: bytes from `offset` on move up by `length`. Takes whole blocks only."""
        _require_linux()
        _fallocate(file.fileno(), _INSERT_RANGE, offset, length)

    def collapse_range(self, file: BinaryIO, offset: int, length: int) -> None:
        """Remove bytes: those behind them move down by `length`. Takes whole blocks only."""
        _require_linux()
        _fallocate(file.fileno(), _COLLAPSE_RANGE, offset, length)

    def clone_range(
        self, source: BinaryIO, source_offset: int, length: int, target: BinaryIO, offset: int
    ) -> None:
        """Share blocks of `source` with `target`. Takes whole blocks, or up to the source's end."""
        _require_linux()
        _clone_range(source.fileno(), source_offset, length, target.fileno(), offset)

    def clone_file(self, source: Path, target: Path) -> None:
        """Create `target`, which must not exist, as a file that shares all blocks of `source`."""
        if sys.platform != "darwin":
            raise OSError(errno.EOPNOTSUPP, "only macOS clones whole files")
        _clone_file(source, target)


LOCAL = FileLayer()


def open_to_edit(files: FileLayer, path: Path) -> BinaryIO:
    """Open a file for reading and writing, also where its owner may only read it.

    Whoever wants that has passed the guard of such files. The mode is changed for no longer than it
    takes. Raises OSError.
    """
    try:
        return files.open(path, "r+b")
    except PermissionError:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & stat.S_IWUSR:
            raise
        files.set_mode(path, mode | stat.S_IWUSR)
        try:
            return files.open(path, "r+b")
        finally:
            files.set_mode(path, mode)


def lock(
    file: BinaryIO,
    path: Path,
    *,
    shared: bool = False,
    optional: bool = False,
    files: FileLayer = LOCAL,
) -> None:
    """Lock `file`, opened by `path`: for an editor, or `shared` against edits while it is read.

    The lock is advisory; it ends when the file is closed or the process ends. With `optional`, a
    file system that has no locks (some network file systems) is accepted. Raises StorageError
    where another process is in the way, or a needed lock cannot be had.
    """
    try:
        locked = files.try_lock(file, shared=shared)
    except OSError as error:
        if not optional:
            raise StorageError(
                f"cannot lock {path}: {error.strerror or error}; an edit in place needs a file "
                "system with locks; write a copy (`output`) instead"
            ) from error
        return
    if not locked:
        raise BusyError(
            f"{path} is being edited by another ggufrope process; try again when it is done"
        )
    # Between opening and locking, the editor that had the lock may have renamed another file here.
    if not same_file(file, path):
        raise BusyError(f"{path} was replaced a moment ago; try again")


@contextmanager
def unfinished(files: FileLayer, named: Callable[[], Path]) -> Iterator[tuple[Path, BinaryIO]]:
    """Create a file that is locked while it is written, under a name that `named` makes up.

    It is removed where the body raises, and has another name or none when the body ends. The lock
    only keeps `recovery.recover` from taking it for abandoned, so a file system without locks is
    accepted; where that came before the lock, another file is created. Raises OSError.
    """
    while True:
        path = named()
        try:  # around the creation too: a signal may strike right after it
            with files.create(path) as file:
                try:
                    lock(file, path, optional=True, files=files)
                except BusyError:
                    continue
                yield path, file
                return
        except BaseException:
            with suppress(OSError):
                files.remove(path)
            raise


def same_file(file: BinaryIO, path: Path) -> bool:
    """Return whether `path` names the open `file`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def write_all(files: FileLayer, file: BinaryIO, offset: int, data: bytes) -> None:
    """Write all of `data` at `offset`, however little a call takes."""
    view = memoryview(data)
    while view:
        written = files.write(file, offset, view)
        if not written:
            raise OSError(errno.EIO, "the file takes no more bytes")
        view = view[written:]
        offset += written


def require_room(files: FileLayer, path: Path, needed: int) -> None:
    """Raise StorageError where `needed` bytes do not fit beside `path`; called before writing."""
    with storage("write beside", path):
        free = files.free_bytes(path)
    if free < needed:
        raise StorageError(
            f"{path.parent} has {free} bytes free, the edit needs {needed}; make room first"
        )


# System calls. Numbers are from the kernel's uapi headers (linux/falloc.h, linux/fs.h) and from
# clonefile(2). Each raises OSError as its call does; EOPNOTSUPP means the file system cannot.

_COLLAPSE_RANGE = 0x08
_INSERT_RANGE = 0x20
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1  # linux/fs.h
_RENAME_EXCL = 4  # sys/stdio.h of macOS
_WRITE = 2  # SYNC_FILE_RANGE_WRITE of linux/fs.h: begin, and wait for nothing
_FICLONERANGE = 0x4020940D  # _IOW(0x94, 13, struct file_clone_range), 32 bytes


_COPIES_AT_THE_SERVER = frozenset({0x6969, 0xFE534D42, 0xFF534D42, 0x00C36400})
"""NFS, SMB 2 and later, CIFS and Ceph, of linux/magic.h."""


def _file_system(file: BinaryIO) -> int:
    """Return the type number of the file system of an open file (Linux)."""
    status = (ctypes.c_ulong * 32)()  # struct statfs, of at most 120 bytes; f_type comes first
    ctypes.CDLL(None).fstatfs(file.fileno(), status)
    return status[0] & 0xFFFFFFFF


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    call = getattr(libc, "fallocate64", None) or libc.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if call(fd, mode, offset, length):
        _raise_errno()


def _clone_range(source: int, source_offset: int, length: int, target: int, offset: int) -> None:
    import fcntl

    fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, source_offset, length, offset))


def _clone_file(source: Path, target: Path) -> None:
    call = ctypes.CDLL(None, use_errno=True).clonefile
    call.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint32)
    if call(os.fsencode(source), os.fsencode(target), 0):
        _raise_errno()


def _rename_to_free_name(source: Path, target: Path) -> None:
    """Rename without replacing: in one call where the system has one, else by a second name."""
    if sys.platform == "win32":
        source.rename(target)  # refuses a name that exists
        return
    try:
        _rename_exclusively(source, target)
        return
    except OSError as error:
        if error.errno not in {*UNSUPPORTED, errno.EPERM}:
            raise
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {*UNSUPPORTED, errno.EPERM, errno.EMLINK}:
            raise
    else:
        source.unlink()
        return
    # Neither call works on this file system (FAT over FUSE, for instance): what remains is to look.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def _rename_exclusively(source: Path, target: Path) -> None:
    """Call renameat2 (Linux) or renamex_np (macOS); EOPNOTSUPP where there is neither."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*map(ctypes.c_char_p, names), ctypes.c_uint(_RENAME_EXCL))
    elif sys.platform == "linux" and hasattr(libc, "renameat2"):
        old, new = map(ctypes.c_char_p, names)
        failed = libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, ctypes.c_uint(_RENAME_NOREPLACE))
    else:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    if failed:
        _raise_errno()


def _refusal(directory: Path, block: int, attempt: Callable[[int], None]) -> str | None:
    """Try an operation on a nameless file of two blocks; return why it is refused, or None."""
    try:
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        try:
            os.pwrite(fd, bytes(2 * block), 0)
            attempt(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return f"the file system refuses: {error.strerror}"
    return None


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def _require_linux() -> None:
    if sys.platform != "linux":
        raise OSError(errno.EOPNOTSUPP, "only Linux has this operation")
