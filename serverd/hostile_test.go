package serverd

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/hostile"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// storms says how long a storm is: short in every run, long for CAGE_ACCEPT. The
// seed is CAGE_HOSTILE_SEED, or a new one.
func storms(t *testing.T, short, long int) (requests int, seed uint64) {
	requests, seed = short, uint64(time.Now().UnixNano())
	if os.Getenv("CAGE_ACCEPT") != "" {
		requests = long
	}
	if s := os.Getenv("CAGE_HOSTILE_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
		seed = n
	}
	t.Logf("CAGE_HOSTILE_SEED=%d, %d requests", seed, requests)
	return requests, seed
}

// ground is a server with exports that hold things which a client that acts as
// nobody may not see, and things that it may not change.
type ground struct {
	*rig
	dir    string // holds the exports x and y, and files outside of both
	secret string // in everything that is to stay secret
	log    *logged
	stop   func()
	files  map[string]proto.FileID // of x, as root knows them
	root   *peer                   // an honest client
	seq    proto.Seq               // of root
}

// logged is the server's log.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newGround(t *testing.T, o Options) *ground {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("makes files of several users")
	}
	var b [16]byte
	rand.Read(b[:])
	g := &ground{dir: t.TempDir(), secret: hex.EncodeToString(b[:]), log: &logged{}, files: map[string]proto.FileID{}}
	g.build(t)
	x, err := OpenExports(t.Context(), []Spec{{Name: "x", Dir: g.at("x")}, {Name: "y", Dir: g.at("y")}}, zerolog.New(g.log))
	require.NoError(t, err)
	o.Exports, o.Log = x.List, zerolog.New(g.log)
	g.rig = start(t, o)
	g.stop = func() {
		g.halt()
		require.NoError(t, x.Close())
	}
	t.Cleanup(g.stop)
	g.root, _ = g.on()
	g.root.tls.NetConn().SetDeadline(time.Time{})
	g.past(t)
	return g
}

func (g *ground) at(name string) string { return filepath.Join(g.dir, name) }

// build makes the trees.
func (g *ground) build(t *testing.T) {
	mkdir := func(name string, mode os.FileMode) {
		require.NoError(t, os.Mkdir(g.at(name), mode))
		require.NoError(t, os.Chmod(g.at(name), mode))
	}
	write := func(name string, mode os.FileMode, content string) {
		require.NoError(t, os.WriteFile(g.at(name), []byte(content), mode))
		require.NoError(t, os.Chmod(g.at(name), mode))
	}
	require.NoError(t, os.Chmod(g.dir, 0o755))
	for _, d := range []string{"x", "y", "outside", "x/public", "x/links"} {
		mkdir(d, 0o755)
	}
	mkdir("x/free", 0o777)
	mkdir("x/closed", 0o755) // shut below
	mkdir("x/closed/open", 0o777)
	write("y/file", 0o666, g.secret)
	write("outside/file", 0o666, g.secret)
	write("x/secret", 0o600, g.secret)
	write("x/mine", 0o644, "mine")
	require.NoError(t, os.Chown(g.at("x/mine"), nobody, nobody))
	write("x/public/file", 0o644, "public")
	write("x/closed/file", 0o666, g.secret)
	write("x/closed/"+g.secret, 0o666, "")
	write("x/closed/open/file", 0o666, g.secret)
	require.NoError(t, os.Symlink(g.secret, g.at("x/closed/link")))
	require.NoError(t, unix.Setxattr(g.at("x/secret"), "user."+g.secret[:20], []byte(g.secret), 0))
	require.NoError(t, unix.Setxattr(g.at("x/closed/file"), "user."+g.secret, []byte(g.secret), 0))
	require.NoError(t, unix.Setxattr(g.at("x/public/file"), "trusted."+g.secret, []byte(g.secret), 0))
	for name, target := range map[string]string{
		"absolute": g.at("outside/file"), "dir": g.at("outside"), "up": "../../outside/file", "updir": "../../outside",
		"etc": "/etc", "cage": "../.cage", "dangling": "nowhere", "loop": "loop", "secret": "../secret", "closed": "../closed",
	} {
		require.NoError(t, os.Symlink(target, g.at("x/links/"+name)))
	}
	require.NoError(t, unix.Mkfifo(g.at("x/public/fifo"), 0o666))
	require.NoError(t, unix.Mknod(g.at("x/public/tty"), unix.S_IFCHR|0o666, int(unix.Mkdev(5, 0))))
	require.NoError(t, unix.Mknod(g.at("x/public/zero"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	require.NoError(t, unix.Mknod(g.at("x/public/socket"), unix.S_IFSOCK|0o666, 0))
	for _, f := range []string{"fifo", "tty", "zero", "socket"} {
		require.NoError(t, os.Chmod(g.at("x/public/"+f), 0o666))
	}
	require.NoError(t, os.Chmod(g.at("x/closed"), 0o700))
}

// do is a change by the honest client.
func (g *ground) do(op proto.Op) proto.Result {
	g.t.Helper()
	g.seq++
	res, err := g.root.change(g.seq, op)
	require.NoError(g.t, err)
	return res
}

// past gives the export a history with secrets in it, and learns the numbers.
func (g *ground) past(t *testing.T) {
	learn := func(names ...string) {
		for _, name := range names {
			id, err := g.root.resolve(name)
			require.NoError(t, err, name)
			g.files[name] = id
		}
	}
	learn("secret", "mine", "public", "public/file", "public/fifo", "public/tty", "public/zero", "public/socket", "free", "links", "closed", "closed/file",
		"closed/"+g.secret, "closed/open", "closed/open/file", "closed/link", "links/absolute", "links/dir", "links/etc", "links/cage")
	made := func(dir, name string, mode uint32) proto.FileID {
		return g.do(&proto.Make{Dir: g.files[dir], Name: name, Mode: mode}).ID
	}
	// Once secret, now public; once public in a closed place, now elsewhere; removed.
	a := made("public", "disclosed", proto.ModeRegular|0o600)
	g.do(&proto.Write{ID: a, Data: []byte(g.secret)})
	g.do(&proto.Write{ID: a, Data: bytes.Repeat([]byte("-"), len(g.secret))})
	g.do(&proto.SetAttr{ID: a, Mask: proto.SetMode, Mode: 0o644})
	b := made("closed", "moved-"+g.secret, proto.ModeRegular|0o666)
	g.do(&proto.Write{ID: b, Data: []byte(g.secret)})
	g.do(&proto.Rename{Dir: g.files["closed"], Name: "moved-" + g.secret, NewDir: g.files["closed/open"], NewName: "moved"})
	c := made("closed", "gone-"+g.secret, proto.ModeRegular|0o666)
	g.do(&proto.Write{ID: c, Data: []byte(g.secret)})
	g.do(&proto.Remove{Dir: g.files["closed"], Name: "gone-" + g.secret})
	d := g.do(&proto.Make{Dir: g.files["closed"], Mode: proto.ModeRegular | 0o666}).ID
	g.do(&proto.Write{ID: d, Data: []byte(g.secret)})
	e := g.do(&proto.Make{Dir: g.files["closed"], Name: "l", Mode: proto.ModeSymlink | 0o777, Target: g.secret}).ID
	f := made("public", "shut", proto.ModeRegular|0o644)
	g.do(&proto.Write{ID: f, Data: []byte(g.secret)})
	g.do(&proto.SetAttr{ID: f, Mask: proto.SetMode, Mode: 0o600})
	for i, id := range []proto.FileID{a, b, c, d, e, f} {
		g.files[fmt.Sprint("past", i)] = id
	}
}

// picture is what of the trees the foe may not change.
func (g *ground) picture() map[string]string {
	g.t.Helper()
	out := map[string]string{}
	require.NoError(g.t, filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(g.dir, path)
		switch name {
		case "x/.cage", "y/.cage", "state", "config":
			return fs.SkipDir
		case "x/mine":
			return nil
		}
		if strings.HasPrefix(name, "x/free/") {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		out[name] = describe(g.t, path, name == "x/free" || name == ".")
		return nil
	}))
	return out
}

// describe is everything about a file; loose leaves out what its entries change.
func describe(t *testing.T, path string, loose bool) string {
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	s := fmt.Sprintf("%o %d:%d %d rdev %d", st.Mode, st.Uid, st.Gid, st.Ino, st.Rdev)
	if !loose {
		s += fmt.Sprintf(" links %d size %d", st.Nlink, st.Size)
	}
	touchable := st.Mode&unix.S_IFMT == unix.S_IFLNK || st.Mode&0o002 != 0 && strings.Contains(path, "/public/")
	if !loose && !touchable { // anybody may touch what anybody may write, like a symlink
		s += fmt.Sprintf(" mtime %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
	}
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	require.NoError(t, err)
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 4096)
		n, _ := unix.Lgetxattr(path, name, value)
		s += fmt.Sprintf(" %s=%q", name, value[:max(n, 0)])
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		s += fmt.Sprintf(" %q", b)
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		require.NoError(t, err)
		s += " -> " + to
	}
	return s
}

// foe is a hostile client: what it sends is its business, what it gets is
// searched for the secret.
type foe struct {
	g        *ground
	keys     *auth.Keyring
	gen      *hostile.Gen
	leak     atomic.Pointer[string] // what came around the secret
	got      atomic.Int64           // bytes received
	answered atomic.Int64

	answers map[status.Code]int // owned by listen
}

func (g *ground) foe(name string, seed, stream uint64) *foe {
	f := &foe{g: g, keys: g.stranger(name, auth.ClientKey{Exports: []string{"x"}}), gen: hostile.New(seed, stream), answers: map[status.Code]int{}}
	for name, id := range g.files {
		f.gen.IDs = append(f.gen.IDs, id)
		if !strings.Contains(name, g.secret) { // errors repeat what was asked
			f.gen.Names = append(f.gen.Names, name)
		}
	}
	f.gen.IDs = append(f.gen.IDs, proto.RootID)
	f.gen.Mine = []proto.FileID{g.files["mine"], g.files["free"], proto.RootID}
	f.gen.Names = append(f.gen.Names, "file", "open", "x", "y", "nobody")
	return f
}

// tap searches everything that is read through it.
type tap struct {
	io.Reader
	f    *foe
	tail []byte
}

func (w *tap) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.f.got.Add(int64(n))
	w.tail = append(w.tail, p[:n]...)
	if i := bytes.Index(w.tail, []byte(w.f.g.secret)); i >= 0 && w.f.leak.Load() == nil {
		around := fmt.Sprintf("%q", w.tail[max(0, i-200):min(len(w.tail), i+100)])
		w.f.leak.Store(&around)
	}
	if keep := len(w.tail) - len(w.f.g.secret); keep > 512 {
		w.tail = append(w.tail[:0], w.tail[keep-256:]...)
	}
	return n, err
}

// line is a foe's connection.
type line struct {
	ended chan struct{} // closed when nothing is answered any more
	tls   *tls.Conn
	in    *bufio.Reader
	head  wire.HelloRep
	next  proto.Seq
	id    uint64
}

// connect opens a session, or, with attach, a data connection of one.
func (f *foe) connect(m wire.HelloReq, attach proto.SessionID) (*line, error) {
	raw, err := net.Dial("tcp", f.g.Addr().String())
	if err != nil {
		return nil, err
	}
	raw.SetDeadline(time.Now().Add(time.Minute))
	l := &line{ended: make(chan struct{}), tls: f.keys.Client(raw), next: 1, id: 1}
	if err := l.tls.Handshake(); err != nil {
		raw.Close()
		return nil, err
	}
	l.in = bufio.NewReader(&tap{Reader: l.tls, f: f})
	if _, err := wire.Greet(struct {
		io.Reader
		io.Writer
	}{l.in, l.tls}); err != nil {
		raw.Close()
		return nil, err
	}
	m.Version, m.Export = wire.Version, "x"
	b := wire.AppendFrame(nil, wire.Request(wire.OpHello, 1), &m)
	var rep wire.Message = &l.head
	if attach != 0 {
		b, rep = wire.AppendFrame(nil, wire.Request(wire.OpAttach, 1), &wire.AttachReq{Version: wire.Version, Session: attach}), &wire.Empty{}
	}
	if _, err = l.tls.Write(b); err == nil {
		var h wire.Header
		var payload []byte
		if h, payload, err = wire.ReadFrame(l.in, wire.MaxFrame, nil); err == nil {
			err = wire.DecodeReply(h, payload, rep)
		}
	}
	if err != nil {
		raw.Close()
		return nil, err
	}
	return l, nil
}

// storm sends requests, on new connections when the server ends one, and reads
// all answers.
func (f *foe) storm(n int) error {
	for f.answered.Load() < int64(n) {
		l, err := f.connect(wire.HelloReq{}, 0)
		if err != nil {
			return err
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.listen(l)
			close(l.ended)
			io.Copy(io.Discard, l.in) // what is no frame is searched as well
		}()
		f.flood(l, n)
		l.tls.CloseWrite()
		<-done
		l.tls.NetConn().Close()
	}
	return nil
}

// listen takes what comes, and counts the answers by their codes.
func (f *foe) listen(l *line) {
	for {
		h, payload, err := wire.ReadFrame(l.in, wire.MaxFrame, nil)
		if err != nil {
			return
		}
		code := status.OK
		if h.IsError() {
			code = codeOf(wire.DecodeReply(h, payload, nil))
		}
		f.answers[code]++
		f.answered.Add(1)
	}
}

// flood sends until the connection ends or n requests are answered.
func (f *foe) flood(l *line, n int) {
	g := f.gen
	g.Session, g.Newest = l.head.Session, f.g.o.Exports[0].Journal.Last()
	for f.answered.Load() < int64(n) {
		var b []byte
		for range 1 + g.IntN(20) {
			b = append(b, f.frame(l)...)
		}
		if _, err := l.tls.Write(b); err != nil {
			return
		}
		select {
		case <-l.ended:
			return
		default:
		}
	}
}

// frame makes a request, mostly one that is taken.
func (f *foe) frame(l *line) []byte {
	g := f.gen
	op, m := g.Request(g.IntN(4000) == 0)
	l.id++
	h := wire.Request(op, l.id)
	bad := g.IntN(4000)
	_, err := wire.DecodeRequest(op, m.Append(nil))
	if c, ok := m.(*wire.ChangeReq); ok && err == nil { // one that cannot be decoded has no place in the order
		c.Seq = l.next
		switch {
		case bad < 1:
			c.Seq += proto.Seq(g.Uint64N(3))
		case bad < 200:
			c.Seq -= proto.Seq(min(g.Uint64N(5), uint64(l.next-1)))
		default:
			l.next++
		}
	}
	b := wire.AppendFrame(nil, h, m)
	switch {
	case bad == 3997:
		return g.Bend(b, true)
	case bad == 3998:
		return g.Garbage()
	case bad > 3600:
		if _, ok := m.(*wire.ChangeReq); !ok {
			return g.Bend(b, false)
		}
	}
	return b
}

// quiet waits until the server has no more of the foes than before, and checks
// everything that must be.
func (g *ground) settled(before map[string]string, goroutines int, foes ...*foe) {
	t := g.t
	t.Helper()
	require.Eventually(t, func() bool { return len(g.connections()) <= 1 }, patience, 10*time.Millisecond, "connections end")
	began := time.Now()
	require.NoError(t, g.root.call(wire.OpPing, &wire.Empty{}, &wire.Empty{}))
	got, err := g.root.read(g.files["closed/file"], 0, 100)
	require.NoError(t, err)
	require.Equal(t, g.secret, string(got.Data), "the honest client reads on")
	g.do(&proto.Label{Name: fmt.Sprint("honest-", g.seq)})
	require.Less(t, time.Since(began), time.Second)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+2 }, patience, 10*time.Millisecond,
		"%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
	require.Equal(t, before, g.picture())
	for _, f := range foes {
		if at := f.leak.Load(); at != nil {
			t.Errorf("the secret came out: %s", *at)
		}
	}
	require.NotContains(t, g.log.String(), `"panic"`)
	rep, err := g.o.Exports[0].Journal.Verify(t.Context(), true)
	require.NoError(t, err)
	require.Empty(t, rep.Problems)
}

// A client sends what it likes, from several connections at once.
func TestStormOfRequests(t *testing.T) {
	n, seed := storms(t, 1000, 300_000)
	g := newGround(t, Options{Stall: 5 * time.Second})
	before, goroutines := g.picture(), runtime.NumGoroutine()
	var wg sync.WaitGroup
	var foes []*foe
	for i := range 3 {
		f := g.foe(fmt.Sprint("foe", i), seed, uint64(i))
		foes = append(foes, f)
		wg.Go(func() {
			if err := f.storm(n); err != nil {
				t.Errorf("foe %d: %v", i, err)
			}
		})
	}
	honest := make(chan struct{})
	ended := make(chan struct{})
	go func() { // all the while somebody works
		defer close(ended)
		var worst time.Duration
		for {
			select {
			case <-honest:
				t.Logf("the honest client waited %v at most", worst)
				return
			case <-time.After(10 * time.Millisecond):
			}
			began := time.Now()
			_, err := g.root.read(g.files["closed/file"], 0, 100)
			if err != nil {
				t.Errorf("honest read: %v", err)
				return
			}
			worst = max(worst, time.Since(began))
		}
	}()
	wg.Wait()
	close(honest)
	<-ended
	var got int64
	for _, f := range foes {
		got += f.got.Load()
		t.Log(f.answers)
	}
	require.Positive(t, got)
	t.Logf("%d bytes received", got)
	g.settled(before, goroutines, foes...)
}
