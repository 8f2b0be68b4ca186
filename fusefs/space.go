package fusefs

import (
	"context"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// patience is how long statfs and the attributes of the mount's root wait for
// a server that seems to be there, before they are answered from memory.
const patience = 250 * time.Millisecond

// StatFs implements fuse.RawFileSystem.
func (s *fileSystem) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	ctx := s.read(cancel, h)
	defer ctx.end()
	st, err := s.freeSpace(ctx, s.header(h))
	if err != nil {
		return s.errors.status("statfs", err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.BlocksFree, Bavail: st.BlocksAvail, Files: st.Files, Ffree: st.FilesFree,
		Bsize: st.BlockSize, Frsize: st.BlockSize, NameLen: st.NameMax,
	}
	return fuse.OK
}

// freeSpace is what the server says of its file system to whoever asks, not
// older than a second while it answers.
func (s *fileSystem) freeSpace(ctx context.Context, h wire.ReqHeader) (proto.StatFS, error) {
	st, err := s.spaces.of(h.Ident).get(ctx, s.session, func(ctx context.Context) (proto.StatFS, error) {
		return s.session.StatFS(ctx, h, s.inodes.root.id)
	})
	if err == nil {
		s.spaces.note(st)
	}
	return st, err
}

// maxSpaces is how many users' answers are kept.
const maxSpaces = 256

// spaces are the free space as users have been told it: each has quotas of his
// own. Who was never told begins with the newest answer. Safe for concurrent use.
type spaces struct {
	mu     sync.Mutex
	users  map[owner]*remembered[proto.StatFS] // guarded by mu
	newest proto.StatFS                        // guarded by mu
}

// owner is whom quotas are kept of.
type owner struct{ uid, gid uint32 }

func (s *spaces) of(who proto.Ident) *remembered[proto.StatFS] {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := owner{who.UID, who.GID}
	r := s.users[o]
	if r == nil {
		if s.users == nil || len(s.users) >= maxSpaces {
			s.users = map[owner]*remembered[proto.StatFS]{}
		}
		r = &remembered[proto.StatFS]{fresh: time.Second, last: s.newest}
		s.users[o] = r
	}
	return r
}

func (s *spaces) note(st proto.StatFS) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.newest = st
}

// remembered is an answer that a server which does not answer must not hold
// up: after patience, or at once while the session is reconnecting, the last
// one is given again. Safe for concurrent use.
type remembered[T any] struct {
	fresh time.Duration // how long an answer is good without asking again; set at construction

	mu   sync.Mutex
	last T         // guarded by mu
	at   time.Time // guarded by mu: when last was the answer
}

// remember sets the first answer.
func (r *remembered[T]) remember(v T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.at = v, time.Now()
}

// hold lets nobody else wait for some time.
func (r *remembered[T]) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at = time.Now()
}

// get asks, or gives the last answer. Errors other than silence are passed on.
func (r *remembered[T]) get(ctx context.Context, session *remote.Session, ask func(context.Context) (T, error)) (T, error) {
	r.mu.Lock()
	last, age := r.last, time.Since(r.at)
	r.mu.Unlock()
	if age < r.fresh || session.Quiet(patience) {
		return last, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	v, err := ask(ctx)
	if err != nil {
		if silence(err) {
			r.hold()
			return last, nil
		}
		return v, err
	}
	r.remember(v)
	return v, nil
}
