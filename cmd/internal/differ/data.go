package differ

import (
	"crypto/sha256"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// maxData bounds a read or write, and what is mapped.
const maxData = 1 << 20

// fill is the bytes of a write: they differ by place, so that bytes which are
// shifted are noticed.
func fill(n int64, seed int) []byte {
	b := make([]byte, min(max(n, 0), maxData))
	for i := range b {
		b[i] = byte(seed*37 + i*3 + i>>8*5)
	}
	return b
}

// digest says in short what bytes are.
func digest(b []byte) string {
	if len(b) == 0 {
		return "n=0"
	}
	var zeros string
	if strings.Trim(string(b), "\x00") == "" {
		zeros = " zeros"
	}
	return fmt.Sprintf("n=%d %x… sha=%.4x%s", len(b), b[:min(len(b), 4)], sha256.Sum256(b), zeros)
}

func got(b []byte, n int, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return digest(b[:n]), nil
}

func (w *worker) read(s *Step) (string, error) {
	b := make([]byte, min(s.Len, maxData))
	n, err := unix.Read(w.slots[s.Slot], b)
	return got(b, n, err)
}

func (w *worker) pread(s *Step) (string, error) {
	b := make([]byte, min(s.Len, maxData))
	n, err := unix.Pread(w.slots[s.Slot], b, s.Off)
	return got(b, n, err)
}

// halves cuts bytes for the vectored calls, which are to see more than one piece.
func halves(b []byte) [][]byte { return [][]byte{b[:len(b)/3], b[len(b)/3:]} }

func (w *worker) readv(s *Step) (string, error) {
	b := make([]byte, min(s.Len, maxData))
	n, err := unix.Readv(w.slots[s.Slot], halves(b))
	return got(b, n, err)
}

func wrote(n int, err error) (string, error) {
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("n=%d", n), nil
}

func (w *worker) write(s *Step) (string, error) {
	return wrote(unix.Write(w.slots[s.Slot], fill(s.Len, s.Fill)))
}

func (w *worker) pwrite(s *Step) (string, error) {
	return wrote(unix.Pwrite(w.slots[s.Slot], fill(s.Len, s.Fill), s.Off))
}

func (w *worker) writev(s *Step) (string, error) {
	return wrote(unix.Writev(w.slots[s.Slot], halves(fill(s.Len, s.Fill))))
}

// lseek knows SEEK_SET, SEEK_CUR and SEEK_END by Mode. In a directory only the
// beginning is a place that all file systems have.
func (w *worker) lseek(s *Step) (string, error) {
	off, whence := s.Off, int(s.Mode)
	var st unix.Stat_t
	if unix.Fstat(w.slots[s.Slot], &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		off, whence = 0, unix.SEEK_SET
	}
	pos, err := unix.Seek(w.slots[s.Slot], off, whence)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(pos), nil
}

// seekData and seekHole tell only what every file system must do: how large a
// hole must be to be one is its own affair. Between the place asked about and
// data there are only zeros; the end of a file is a hole; beyond it is nothing.
// The file's position is put back.

func (w *worker) seekData(s *Step) (string, error) {
	fd := w.slots[s.Slot]
	size, regular := regularSize(fd)
	if !regular {
		return "not asked", nil
	}
	pos, err := w.seekBack(fd, s.Off, unix.SEEK_DATA)
	if err == unix.ENXIO && s.Off >= 0 && s.Off < size {
		pos, err = size, nil // all of the rest is a hole
	}
	if err != nil {
		return "", err
	}
	if pos < s.Off || pos > size || s.Off >= size {
		return fmt.Sprintf("WRONG: %d is no data from %d on in %d bytes", pos, s.Off, size), nil
	}
	skipped := make([]byte, min(pos-s.Off, maxData))
	n, err := unix.Pread(fd, skipped, s.Off)
	if err == nil && strings.Trim(string(skipped[:n]), "\x00") != "" {
		return fmt.Sprintf("WRONG: from %d to %d there is data", s.Off, pos), nil
	}
	return "sound", nil
}

func (w *worker) seekHole(s *Step) (string, error) {
	fd := w.slots[s.Slot]
	size, regular := regularSize(fd)
	if !regular {
		return "not asked", nil
	}
	pos, err := w.seekBack(fd, s.Off, unix.SEEK_HOLE)
	if err != nil {
		return "", err
	}
	if pos < s.Off || pos > size || s.Off >= size {
		return fmt.Sprintf("WRONG: %d is no hole from %d on in %d bytes", pos, s.Off, size), nil
	}
	return "sound", nil
}

func regularSize(fd int) (int64, bool) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, false
	}
	return st.Size, st.Mode&unix.S_IFMT == unix.S_IFREG
}

func (w *worker) seekBack(fd int, off int64, whence int) (int64, error) {
	was, err := unix.Seek(fd, 0, unix.SEEK_CUR)
	if err != nil {
		return 0, err
	}
	pos, err := unix.Seek(fd, off, whence)
	if err == nil {
		_, err = unix.Seek(fd, was, unix.SEEK_SET)
	}
	return pos, err
}

func (w *worker) ftruncate(s *Step) (string, error) {
	return "", unix.Ftruncate(w.slots[s.Slot], s.Len)
}

func (w *worker) fallocate(s *Step) (string, error) {
	return "", unix.Fallocate(w.slots[s.Slot], uint32(s.Flags), s.Off, s.Len)
}

// copyRange copies until all is copied: a call may do less than it is asked.
func (w *worker) copyRange(s *Step) (string, error) {
	from, to, done := s.Off, s.ToOff, int64(0)
	for done < s.Len {
		n, err := unix.CopyFileRange(w.slots[s.Slot], &from, w.slots[s.ToSlot], &to, int(s.Len-done), 0)
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		done += int64(n)
	}
	return fmt.Sprintf("n=%d", done), nil
}

// mmap stores into a shared mapping, as far as the file goes, and waits for it
// to be written. A file with setuid or setgid is not mapped: a mount takes the
// store for a write, which takes these bits away.
func (w *worker) mmap(s *Step) (string, error) {
	fd := w.slots[s.Slot]
	size, regular := regularSize(fd)
	var st unix.Stat_t
	if !regular || s.Off >= size || unix.Fstat(fd, &st) != nil || st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		return "not mapped", nil
	}
	first := s.Off / 4096 * 4096
	m, err := unix.Mmap(fd, first, int(min(size-first, maxData)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return "", err
	}
	n := copy(m[s.Off-first:], fill(s.Len, s.Fill))
	err = unix.Msync(m, unix.MS_SYNC)
	if bad := unix.Munmap(m); err == nil {
		err = bad
	}
	return fmt.Sprintf("n=%d", n), err
}

func (w *worker) fsync(s *Step) (string, error)     { return "", unix.Fsync(w.slots[s.Slot]) }
func (w *worker) fdatasync(s *Step) (string, error) { return "", unix.Fdatasync(w.slots[s.Slot]) }

// forget asks the kernel to drop the pages of a file.
func (w *worker) forget(s *Step) (string, error) {
	return "", unix.Fadvise(w.slots[s.Slot], 0, 0, unix.FADV_DONTNEED)
}
