package journal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"syscall"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/branch"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// What a session had acknowledged to its programs and what could not be applied
// is kept beside the log, in a file of its own for each session (package branch)
// in .cage/branch. It is no part of the history and of no checkpoint, nobody's
// change, until it is applied (package replay) as one transaction; then, or when it is dropped, the file goes.
// A branch is as durable as bytes that nobody has synced: the next checkpoint's syncfs makes it so.

// Bounds of what is kept.
const (
	maxBranches    = 1024
	maxBranchBytes = 256 << 20 // of one
	maxAllBranches = 1 << 30   // of all together
)

// branches is the branches of an export. mu is held over the disk, and under it nothing else is taken.
type branches struct {
	mu    sync.Mutex
	dir   vfs.Dir // nil: there is none yet
	known map[proto.SessionID]*Branch
	bytes int64
}

// Branch is what is known of one. To one that is damaged nothing is added.
type Branch struct {
	proto.BranchInfo
	UIDs  []uint32 // who made its writes, ascending
	files map[proto.FileID]bool
	last  proto.Seq
}

func newBranch(id proto.SessionID) *Branch {
	return &Branch{BranchInfo: proto.BranchInfo{Session: id}, files: map[proto.FileID]bool{}}
}

func branchName(id proto.SessionID) string { return fmt.Sprintf("%016x", uint64(id)) }

// BranchName is the name under which people know a session's branch.
func BranchName(id proto.SessionID) string { return branchName(id) }

// Strand keeps a write that cannot be applied, once for each number of a session. alone says that
// nobody else can have changed the file since the session knew it. Errors: those of a write
// that its writer may not do, NoSpace where there is no room for more; then nothing of it is kept.
// It blocks while the file is being changed, and for the disk. fresh: a branch has begun.
func (j *Journal) Strand(ctx context.Context, s *Submission, w *proto.Write, alone bool) (fresh bool, err error) {
	base, err := j.mayStrand(ctx, s, w.ID, alone)
	if err != nil {
		return false, err
	}
	st, err := j.statFS(s.Ident.UID, s.Ident.GID)
	if err == nil && st.BlocksAvail*uint64(st.BlockSize) < uint64(len(w.Data)) {
		err = status.New(status.NoSpace, "", "branch")
	}
	if err != nil {
		return false, err
	}
	now, client := j.opts.Now(), j.ClientName(s.Client)
	path, ok := j.tree.path(w.ID)
	if !ok && base != 0 {
		path = j.pathThen(w.ID, base)
	}
	b := &j.branches
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.add(j.tree.cage, branch.Head{Session: s.Session, Client: client, Began: now}, &branch.Write{
		Seq: s.Seq, Time: now, UID: s.Ident.UID, PID: s.Ident.PID, Comm: s.Ident.Comm,
		ID: w.ID, Path: path, Base: base, Off: w.Off, Append: w.Append, Data: w.Data,
	})
}

// pathThen is a path of a file after a record, "" if it had none or history does not reach back to it.
func (j *Journal) pathThen(id proto.FileID, lsn proto.LSN) (path string) {
	past, err := j.At(lsn)
	if err != nil {
		return ""
	}
	for id != proto.RootID {
		places, err := past.Places(id)
		if err != nil || len(places) == 0 || len(path) > proto.MaxPath {
			return ""
		}
		if path != "" {
			path = "/" + path
		}
		path, id = places[0].Name+path, places[0].Dir
	}
	return path
}

// mayStrand checks that a session may write to a file, and returns up to which record it knew that.
func (j *Journal) mayStrand(ctx context.Context, s *Submission, id proto.FileID, alone bool) (base proto.LSN, err error) {
	for {
		j.planMu.Lock()
		if err = j.usable(); err == nil {
			err = j.reachLocked(s)
		}
		if err == nil {
			_, err = j.mayWrite(&pending{sub: s}, id)
		}
		if ses := j.sessions[s.Session]; ses != nil && err == nil {
			base = ses.knew(id)
		}
		j.planMu.Unlock()
		var w waitFor
		if !errors.As(err, &w) {
			break
		}
		if err := j.waitApplied(ctx, w.lsn); err != nil {
			return 0, err
		}
	}
	if status.Of(err) == status.Stale && s.Opened {
		return 0, nil // it is gone, and who had it open could still write to it
	}
	if err != nil || base != 0 || !alone {
		return base, err
	}
	a, err := j.attr(id)
	return a.Change, err
}

// Branches lists the branches, the oldest first. One that is damaged is listed with what can be read of it.
func (j *Journal) Branches() ([]Branch, error) {
	b := &j.branches
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.open(j.tree.cage, true); err != nil {
		return nil, err
	}
	var out []Branch
	for _, x := range b.known {
		c := *x
		c.UIDs, c.files = slices.Clone(x.UIDs), nil
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b Branch) int {
		if c := cmp.Compare(a.Began, b.Began); c != 0 {
			return c
		}
		return cmp.Compare(a.Session, b.Session)
	})
	return out, nil
}

// Branch tells of a session's branch: status.NotFound.
func (j *Journal) Branch(id proto.SessionID) (Branch, error) {
	list, err := j.Branches()
	if err != nil {
		return Branch{}, err
	}
	for _, x := range list {
		if x.Session == id {
			return x, nil
		}
	}
	return Branch{}, noBranch(id)
}

func noBranch(id proto.SessionID) error {
	return status.Newf(status.NotFound, "", branchName(id), "there is no such branch")
}

// ReadBranch reads the file of a session's branch as os.File would: status.NotFound.
func (j *Journal) ReadBranch(id proto.SessionID, p []byte, off int64) (int, error) {
	b := &j.branches
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.open(j.tree.cage, true); err != nil {
		return 0, err
	}
	x := b.known[id]
	if x == nil {
		return 0, noBranch(id)
	}
	size := int64(x.Size)
	if off >= size {
		return 0, io.EOF
	}
	f, err := b.dir.Open(branchName(id), false)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p[:min(int64(len(p)), size-off)], off)
}

// DropBranch removes a session's branch, durably, but for what lies behind a size: that came while
// somebody looked at the rest. Errors: status.NotFound.
func (j *Journal) DropBranch(id proto.SessionID, size uint64) error {
	b := &j.branches
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.open(j.tree.cage, true); err != nil {
		return err
	}
	x := b.known[id]
	if x == nil {
		return noBranch(id)
	}
	if size < x.Size {
		return b.behead(x, size)
	}
	if err := b.dir.Remove(branchName(id)); err != nil {
		return err
	}
	delete(b.known, id)
	b.bytes -= int64(x.Size)
	return b.dir.Sync()
}

// branchTemp is the name of a branch's file before it takes the place of another.
const branchTemp = "new"

// behead makes a branch begin at a size.
func (b *branches) behead(x *Branch, size uint64) error {
	old, err := b.dir.Open(branchName(x.Session), false)
	if err != nil {
		return err
	}
	defer old.Close()
	if err := b.dir.Remove(branchTemp); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	f, err := b.dir.Create(branchTemp, 0o600)
	if err != nil {
		return err
	}
	w := io.NewOffsetWriter(f, 0)
	_, err = w.Write(branch.AppendHead(nil, &branch.Head{Session: x.Session, Client: x.Client, Began: x.Began}))
	if err == nil {
		_, err = io.Copy(w, io.NewSectionReader(old, int64(size), int64(x.Size-size)))
	}
	if err == nil {
		err = f.Datasync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := b.dir.Rename(branchTemp, b.dir, branchName(x.Session), 0); err != nil {
		return err
	}
	fresh := newBranch(x.Session)
	if err := fresh.scan(b.dir); err != nil {
		return err
	}
	b.known[x.Session] = fresh
	b.bytes += int64(fresh.Size) - int64(x.Size)
	return b.dir.Sync()
}

// open opens the directory, which without create may stay away, and looks at what is there. Idempotent.
func (b *branches) open(cage vfs.Dir, readOnly bool) error {
	if b.dir != nil {
		return nil
	}
	dir, err := subdir(cage, "branch", readOnly)
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	b.known = map[proto.SessionID]*Branch{}
	err = dir.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
		var id uint64
		if n, err := fmt.Sscanf(name, "%016x", &id); err == nil && n == 1 && branchName(proto.SessionID(id)) == name {
			b.known[proto.SessionID(id)] = newBranch(proto.SessionID(id))
		}
		return true
	})
	for id, x := range b.known {
		if err == nil {
			err = x.scan(dir)
		}
		if b.bytes += int64(x.Size); x.Size == 0 && !x.Damaged {
			delete(b.known, id) // not even its head was written: add goes over it
		}
	}
	if err != nil {
		dir.Close()
		return err
	}
	b.dir = dir
	return nil
}

// scan reads a branch's file.
func (x *Branch) scan(dir vfs.Dir) error {
	f, err := dir.Open(branchName(x.Session), false)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := branch.NewReader(io.NewSectionReader(f, 0, 1<<62))
	if err == nil {
		x.Client, x.Began = r.Head.Client, r.Head.Began
	}
	for err == nil {
		var w *branch.Write
		if w, err = r.Next(); err == nil {
			x.note(w)
		}
	}
	if r != nil {
		x.Size = uint64(r.Size())
	}
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	if c := status.Of(err); c != status.Damaged && c != status.Version {
		return err
	}
	x.Damaged = true
	return nil
}

// note counts a write.
func (x *Branch) note(w *branch.Write) {
	x.last, x.Newest = w.Seq, w.Time
	if i, ok := slices.BinarySearch(x.UIDs, w.UID); !ok {
		x.UIDs = slices.Insert(x.UIDs, i, w.UID)
	}
	x.files[w.ID] = true
	x.Files, x.Writes, x.Bytes = uint32(len(x.files)), x.Writes+1, x.Bytes+uint64(len(w.Data))
}

// add writes a write behind those that there are. fresh: it is the first.
func (b *branches) add(cage vfs.Dir, h branch.Head, w *branch.Write) (fresh bool, err error) {
	if err := b.open(cage, false); err != nil {
		return false, err
	}
	x := b.known[h.Session]
	var buf []byte
	switch {
	case x != nil && x.Damaged:
		return false, status.Newf(status.Damaged, "", branchName(h.Session), "the session's branch is damaged: drop it")
	case x != nil && w.Seq <= x.last:
		return false, nil // it was sent again
	case x == nil && len(b.known) >= maxBranches:
		return false, status.Newf(status.NoSpace, "", "branch", "there are %d branches already", maxBranches)
	case x == nil:
		x = newBranch(h.Session)
		x.Client, x.Began = h.Client, h.Began
		buf = branch.AppendHead(buf, &h)
	}
	buf = branch.AppendWrite(buf, w)
	if n := int64(len(buf)); int64(x.Size)+n > maxBranchBytes || b.bytes+n > maxAllBranches {
		return false, status.Newf(status.NoSpace, "", "branch", "it has %d bytes already, and all branches %d", x.Size, b.bytes)
	}
	f, err := b.file(x)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if _, err := f.WriteAt(buf, int64(x.Size)); err != nil {
		return false, err // what is torn lies behind Size: the next write cuts it off
	}
	b.known[x.Session] = x
	x.Size += uint64(len(buf))
	b.bytes += int64(len(buf))
	x.note(w)
	return x.Writes == 1, nil
}

// file opens a branch's file to write behind its Size; it makes one that is not there.
func (b *branches) file(x *Branch) (vfs.File, error) {
	f, err := b.dir.Open(branchName(x.Session), true)
	if errors.Is(err, syscall.ENOENT) {
		return b.dir.Create(branchName(x.Session), 0o600)
	}
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(x.Size)); err != nil { // what is behind it is torn
		f.Close()
		return nil, err
	}
	return f, nil
}
