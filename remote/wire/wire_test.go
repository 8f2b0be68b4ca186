package wire

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

var update = flag.Bool("update", false, "write testdata again")

func TestTable(t *testing.T) {
	names := map[string]Opcode{}
	changes := map[proto.OpKind]bool{}
	for op, s := range Table {
		require.NotEmpty(t, s.Name)
		require.Zero(t, names[s.Name], "name %q used twice", s.Name)
		names[s.Name] = op
		require.Equal(t, s.Name, op.String())
		if s.NewPush != nil {
			require.True(t, s.NewRequest == nil && s.NewReply == nil, s.Name)
			require.GreaterOrEqual(t, op, Opcode(100))
			continue
		}
		require.True(t, s.NewRequest != nil && s.NewReply != nil, s.Name)
		if s.Change != 0 {
			changes[s.Change] = true
			require.Equal(t, OpChange+Opcode(s.Change), op)
			req := s.NewRequest().(*ChangeReq)
			require.Equal(t, s.Change, req.Op.Kind())
			require.Equal(t, op, ChangeOpcode(req.Op))
			require.False(t, s.Data, "changes are ordered: main connection only")
		}
	}
	for k := proto.OpMake; k <= proto.OpCopy; k++ {
		require.True(t, changes[k], "operation %d has no opcode", k)
	}
	require.Equal(t, "opcode 999", Opcode(999).String())
}

func TestRoundTrip(t *testing.T) {
	for _, p := range parts() {
		t.Run(p.String(), func(t *testing.T) {
			for seed := range uint64(50) {
				m := fill(p.fresh(), source(seed))
				if _, empty := m.(*Empty); !empty {
					require.Empty(t, zeroField(reflect.ValueOf(m), ""), "field not filled")
				}
				b := m.Append(nil)
				got := p.fresh()
				require.NoError(t, Decode(p.String(), b, got))
				require.Equal(t, m, got)
				require.Equal(t, append([]byte("before"), b...), m.Append([]byte("before")), "appends")

				later := p.fresh()
				require.NoError(t, Decode(p.String(), append(bytes.Clone(b), "later fields"...), later))
				require.Equal(t, m, later, "trailing bytes are ignored")
			}
		})
	}
}

func TestZeroMessages(t *testing.T) {
	for _, p := range parts() {
		b := p.fresh().Append(nil)
		require.NoError(t, Decode(p.String(), b, p.fresh()), p)
	}
}

// A message that lacks its end is refused, wherever it was cut. Decoders of
// other messages may take it for one of theirs, but come to no harm.
func TestTruncated(t *testing.T) {
	all := parts()
	for _, p := range all {
		b := fill(p.fresh(), source(1)).Append(nil)
		for n := range b {
			err := Decode(p.String(), b[:n:n], p.fresh())
			require.Equal(t, status.BadFrame, status.Of(err), "%s cut at %d of %d accepted", p, n, len(b))
			require.ErrorContains(t, err, "decode "+p.String()+": ")
			for _, o := range all {
				_ = Decode(o.String(), b[:n:n], o.fresh())
			}
		}
	}
}

// The bytes of each message with all fields filled. A difference is a change of
// the protocol: appending fields is one that old peers bear, others need a new
// version.
func TestGolden(t *testing.T) {
	file := filepath.Join("testdata", "messages.txt")
	var b strings.Builder
	fmt.Fprintf(&b, "# Each message in its frame, all fields filled. Written by go test -run TestGolden -update.\n")
	for _, p := range parts() {
		fmt.Fprintf(&b, "\n%s\n", p)
		frame := AppendFrame(nil, p.header(), fill(p.fresh(), source(uint64(p.op))))
		for len(frame) > 0 {
			n := min(32, len(frame))
			fmt.Fprintf(&b, "  %s\n", hex.EncodeToString(frame[:n]))
			frame = frame[n:]
		}
	}
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(file, []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

// No length in a payload makes a decoder allocate more than a small multiple
// of the bytes that are there.
func TestHostileLengths(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	hostile := [][]byte{
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, // largest varint
		{0xff, 0xff, 0xff, 0xff},                                     // largest cut list
		{0xff, 0xff, 0x3f},                                           // 1 MiB - 1: MaxIO, MaxList
		{0x80, 0x80, 0x40},                                           // 1 MiB
		{0xff, 0xff, 0x03},                                           // 65535: MaxOpens, MaxPath, MaxXattr
		{0x80, 0x08},                                                 // 1024: MaxEntries, MaxGroups
		{0x00, 0x04, 0x00, 0x00},                                     // 1024 in a cut list
		{0xff, 0x00, 0x0f, 0x00},                                     // close to MaxList in a cut list
	}
	var before, after runtime.MemStats
	for _, p := range parts() {
		b := fill(p.fresh(), source(2)).Append(nil)
		for i := 0; i <= len(b); i++ {
			for _, h := range hostile {
				evil := append(append(bytes.Clone(b[:i]), h...), b[i:]...)
				m := p.fresh()
				runtime.ReadMemStats(&before)
				_ = Decode("", evil, m)
				runtime.ReadMemStats(&after)
				got := after.TotalAlloc - before.TotalAlloc
				require.LessOrEqual(t, got, uint64(32*len(evil)+2048), "%s with % x at %d: allocated", p, h, i)
			}
		}
	}
}

func TestOverLimit(t *testing.T) {
	names := func(n, each int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = strings.Repeat("n", each)
		}
		return out
	}
	long := func(n int) string { return strings.Repeat("x", n+1) }
	for name, m := range map[string]Message{
		"name":            &LookupReq{Name: long(proto.MaxName)},
		"path":            &ResolveReq{Path: long(proto.MaxPath)},
		"target":          &ReadlinkRep{Target: long(proto.MaxTarget)},
		"read data":       &ReadRep{Data: make([]byte, proto.MaxIO+1)},
		"read length":     &ReadReq{Len: proto.MaxIO + 1},
		"write data":      &ChangeReq{Op: &proto.Write{Data: make([]byte, proto.MaxIO+1)}},
		"attribute":       &BytesRep{Value: make([]byte, proto.MaxXattr+1)},
		"attribute's set": &ChangeReq{Op: &proto.SetXattr{Value: make([]byte, proto.MaxXattr+1)}},
		"label":           &ChangeReq{Op: &proto.Label{Name: long(proto.MaxLabel)}},
		"paths":           &ChangeReq{Op: &proto.Rollback{Paths: names(MaxEntries+1, 1)}},
		"records":         &ChangeReq{Op: &proto.Undo{LSNs: make([]proto.LSN, MaxEntries+1)}},
		"opens":           &HelloReq{Opens: make([]proto.FileID, MaxOpens+1)},
		"locks":           &HelloReq{Locks: make([]Lock, MaxLocks+1)},
		"lost locks":      &HelloRep{LostLocks: make([]uint32, MaxLocks+1)},
		"exports":         &ExportsRep{Names: names(MaxEntries+1, 1)},
		"moment kind":     &MomentReq{Moment: proto.Moment{Kind: proto.MomentLabel + 1}},
		"new files":       &ChangeReq{Op: &proto.Rollback{New: proto.NewKeep + 1}},
	} {
		t.Run(name, func(t *testing.T) {
			into := reflect.New(reflect.TypeOf(m).Elem()).Interface().(Message)
			if c, ok := m.(*ChangeReq); ok {
				into.(*ChangeReq).Op = Table[ChangeOpcode(c.Op)].NewRequest().(*ChangeReq).Op
			}
			err := Decode("it", m.Append(nil), into)
			require.Equal(t, status.BadFrame, status.Of(err), "%v", err)
		})
	}
}

func TestFlagIsZeroOrOne(t *testing.T) {
	require.NoError(t, Decode("", []byte{1}, &VerifyReq{}))
	require.Error(t, Decode("", []byte{2}, &VerifyReq{}))
}

// What is for people is shortened instead of refused.
func TestShortened(t *testing.T) {
	roundTrip := func(m, into Message) {
		t.Helper()
		require.NoError(t, Decode("it", m.Append(nil), into))
	}
	var hello HelloReq
	roundTrip(&HelloReq{Software: strings.Repeat("s", 999), Client: strings.Repeat("c", 999)}, &hello)
	require.Len(t, hello.Software, MaxWord)
	require.Len(t, hello.Client, MaxWord)

	var id IDReq
	roundTrip(&IDReq{ReqHeader: ReqHeader{Ident: proto.Ident{
		Comm: strings.Repeat("c", 999), Groups: make([]uint32, 5000)}}, ID: 7}, &id)
	require.Len(t, id.Ident.Comm, proto.MaxComm)
	require.Len(t, id.Ident.Groups, proto.MaxGroups)
	require.EqualValues(t, 7, id.ID)

	var e ErrorRep
	roundTrip(&ErrorRep{Code: status.IO, Text: strings.Repeat("ä", MaxText), Object: strings.Repeat("o", 2*MaxText)}, &e)
	require.Equal(t, strings.Repeat("ä", MaxText/2), e.Text)
	require.Len(t, e.Object, MaxText)
	roundTrip(&ErrorRep{Text: "x" + strings.Repeat("ä", MaxText)}, &e)
	require.Equal(t, "x"+strings.Repeat("ä", MaxText/2-1), e.Text, "not cut within a letter")

	var c Changed
	roundTrip(&Changed{ID: 3, Names: make([]string, MaxEntries+1), Data: true}, &c)
	require.Equal(t, Changed{ID: 3, Data: true}, c, "too many names are unknown names")
}

// The longest message of each kind fits into a frame, lists are cut and say so.
func TestLongLists(t *testing.T) {
	fits := func(m, into Message) {
		t.Helper()
		b := m.Append(nil)
		require.LessOrEqual(t, len(b), MaxFrame)
		require.NoError(t, Decode("it", b, into))
	}
	name := strings.Repeat("n", proto.MaxName)
	path := strings.Repeat("p", proto.MaxPath)
	top := proto.Attr{ID: proto.MaxFileID, Size: 1<<63 - 1, Atime: 1 << 62, Mtime: 1 << 62, Ctime: 1 << 62, Btime: 1 << 62, Change: 1 << 63}

	entries := make([]proto.DirEntry, MaxEntries)
	for i := range entries {
		entries[i] = proto.DirEntry{Name: name, Cookie: 1 << 63, Attr: top}
	}
	var dir ReadDirRep
	fits(&ReadDirRep{Entries: entries, EOF: true}, &dir)
	require.Len(t, dir.Entries, MaxEntries)
	require.True(t, dir.EOF)
	fits(&ReadDirRep{Entries: append(entries, entries[0]), EOF: true}, &dir)
	require.Len(t, dir.Entries, MaxEntries)
	require.False(t, dir.EOF, "an entry was left out")

	history := make([]proto.Entry, 100)
	for i := range history {
		history[i] = proto.Entry{LSN: proto.LSN(1000 - i), Path: path + "too long", NewPath: path}
	}
	var log LogRep
	fits(&LogRep{Entries: history}, &log)
	require.True(t, log.More)
	require.Greater(t, len(log.Entries), 1)
	require.Equal(t, history[1].LSN, log.Entries[1].LSN)
	require.Equal(t, path, log.Entries[0].Path)

	var rep ChangeRep
	plan := make([]proto.PlanStep, 100)
	for i := range plan {
		plan[i] = proto.PlanStep{Action: "move", Path: path, From: path}
	}
	fits(&ChangeRep{Result: proto.Result{Plan: plan, More: 5}}, &rep)
	require.Equal(t, 105, len(rep.Result.Plan)+int(rep.Result.More))
	require.NotEmpty(t, rep.Result.Plan)

	var verify VerifyRep
	fits(&VerifyRep{Problems: make([]string, MaxEntries+10)}, &verify)
	require.Len(t, verify.Problems, MaxEntries)
	require.EqualValues(t, 10, verify.More)

	ident := proto.Ident{UID: 1<<32 - 1, GID: 1<<32 - 1, PID: 1<<32 - 1, PGID: 1<<32 - 1, Comm: strings.Repeat("c", proto.MaxComm)}
	for range proto.MaxGroups {
		ident.Groups = append(ident.Groups, 1<<32-1)
	}
	write := &ChangeReq{Seq: 1 << 63, Acked: 1 << 63, Ident: ident,
		Op: &proto.Write{ID: proto.MaxFileID, Off: 1 << 62, Data: make([]byte, proto.MaxIO)}}
	fits(write, &ChangeReq{Op: &proto.Write{}})
	opens := make([]proto.FileID, MaxOpens)
	for i := range opens {
		opens[i] = proto.MaxFileID
	}
	locks := make([]Lock, MaxLocks)
	for i := range locks {
		locks[i] = Lock{At: 1<<64 - 1, ID: proto.MaxFileID, Owner: 1<<64 - 1, Lock: lockset.Lock{Start: 1<<64 - 1, End: 1<<64 - 1, PID: 1<<32 - 1}}
	}
	fits(&HelloReq{Opens: opens, Locks: locks}, &HelloReq{})
	names := make([]string, MaxEntries)
	for i := range names {
		names[i] = name
	}
	fits(&Changed{Names: names}, &Changed{})
	fits(&ExportsRep{Names: names}, &ExportsRep{})
	fits(&LogReq{Ident: ident, Path: path}, &LogReq{})
}

func TestDecodeByOpcode(t *testing.T) {
	for _, op := range []Opcode{0, 19, OpChange, 999, OpChanged} {
		_, err := DecodeRequest(op, nil)
		require.Equal(t, status.Unsupported, status.Of(err), "request %d", op)
	}
	_, err := DecodePush(OpPing, nil)
	require.Equal(t, status.Unsupported, status.Of(err))
	_, err = DecodeChange(OpPing, nil)
	require.Equal(t, status.Unsupported, status.Of(err))

	change := &ChangeReq{Seq: 3, Op: &proto.Remove{Dir: 1, Name: "n", IsDir: true}}
	got, err := DecodeChange(OpChange+Opcode(proto.OpRemove), change.Append(nil))
	require.NoError(t, err)
	require.Equal(t, change, got)
	_, err = DecodeChange(OpChange+Opcode(proto.OpRemove), nil)
	require.Equal(t, status.BadFrame, status.Of(err))
	require.Error(t, Decode("", change.Append(nil), &ChangeReq{}), "no operation to decode into")

	push, err := DecodePush(OpRecall, (&Recall{ID: 5}).Append(nil))
	require.NoError(t, err)
	require.Equal(t, &Recall{ID: 5}, push)
}

func TestDataIsNotCopied(t *testing.T) {
	payload := (&ReadRep{Size: 4, Data: []byte("data")}).Append(nil)
	var rep ReadRep
	require.NoError(t, Decode("", payload, &rep))
	payload[len(payload)-1] = 'X'
	require.Equal(t, "datX", string(rep.Data))
	require.Equal(t, len(rep.Data), cap(rep.Data), "an append would overwrite what follows")

	data := []byte("written")
	for name, m := range map[string]Message{
		"read":  &ReadRep{Size: 9, Data: data},
		"write": &ChangeReq{Seq: 1, Op: &proto.Write{ID: 1, Data: data}},
	} {
		h := Request(OpPing, 1)
		head, tail := AppendFrameHead(nil, h, m)
		require.Same(t, &data[0], &tail[0], name)
		require.Equal(t, AppendFrame(nil, h, m), append(head, tail...), name)
	}
	_, tail := AppendFrameHead(nil, Request(OpPing, 1), &ReleaseReq{})
	require.Nil(t, tail)
}

func TestErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		code status.Code
		text string
	}{
		"code with operation": {status.New(status.NotFound, "lookup", "a.txt"), status.NotFound, "lookup a.txt: no such file or directory"},
		"with cause":          {status.Newf(status.IO, "read", "a.txt", "disk: %w", io.EOF), status.IO, "read a.txt: disk: EOF"},
		"wrapped twice":       {status.Wrap(status.New(status.Busy, "lock", ""), "mount", "/m"), status.Busy, "mount /m: lock: busy"},
		"bare code":           {status.Draining, status.Draining, "server is stopping"},
		"foreign":             {errors.New("oops"), status.Internal, "oops"},
		"nil":                 {nil, status.Internal, "internal error"},
	} {
		t.Run(name, func(t *testing.T) {
			m := FromError(tc.err)
			m.LSN = 12
			var got ErrorRep
			require.NoError(t, Decode("", m.Append(nil), &got))
			require.Equal(t, *m, got)
			err := got.ToError()
			require.ErrorIs(t, err, tc.code)
			require.EqualError(t, err, tc.text)
		})
	}
	require.Equal(t, status.Internal, status.Of((&ErrorRep{}).ToError()), "an error is never ok")
	require.EqualError(t, (&ErrorRep{Code: 999}).ToError(), "status 999")
}

func TestDecodeReply(t *testing.T) {
	request := Request(OpGetAttr, 9)
	frame := AppendFrame(nil, request.Reply(), &AttrRep{Attr: proto.Attr{ID: 4}})
	h, payload, err := ReadFrame(bufio.NewReader(bytes.NewReader(frame)), MaxFrame, nil)
	require.NoError(t, err)
	require.True(t, h.IsReply() && !h.IsError() && !h.IsPush())
	var attr AttrRep
	require.NoError(t, DecodeReply(h, payload, &attr))
	require.EqualValues(t, 4, attr.Attr.ID)

	frame = AppendError(nil, request, FromError(status.New(status.Stale, "getattr", "fid 4")))
	h, payload, err = ReadFrame(bufio.NewReader(bytes.NewReader(frame)), MaxFrame, nil)
	require.NoError(t, err)
	require.True(t, h.IsReply() && h.IsError())
	require.Equal(t, request.ID, h.ID)
	require.EqualError(t, DecodeReply(h, payload, &attr), "getattr fid 4: stale file number")
	require.Equal(t, status.BadFrame, status.Of(DecodeReply(h, payload[:1], &attr)))
}

func TestReadFrame(t *testing.T) {
	first := AppendFrame(nil, Request(OpLookup, 1), &LookupReq{Dir: 1, Name: "a"})
	both := AppendFrame(bytes.Clone(first), Request(OpBye, 2), &Empty{})

	r := bufio.NewReader(iotest.OneByteReader(bytes.NewReader(both)))
	buf := make([]byte, 64)
	h, payload, err := ReadFrame(r, MaxFrame, buf)
	require.NoError(t, err)
	require.Equal(t, Header{Len: uint32(len(first) - HeaderSize), Op: OpLookup, ID: 1}, h)
	require.Same(t, &buf[0], &payload[0], "a buffer that is large enough is used")
	h, payload, err = ReadFrame(r, MaxFrame, nil)
	require.NoError(t, err)
	require.Equal(t, OpBye, h.Op)
	require.Empty(t, payload)
	_, _, err = ReadFrame(r, MaxFrame, nil)
	require.Equal(t, io.EOF, err, "the end between frames")

	for n := 1; n < len(first); n++ {
		_, _, err := ReadFrame(bufio.NewReader(bytes.NewReader(first[:n])), MaxFrame, nil)
		require.Equal(t, io.ErrUnexpectedEOF, err, "cut at %d", n)
	}
	broken := errors.New("broken")
	_, _, err = ReadFrame(bufio.NewReader(iotest.ErrReader(broken)), MaxFrame, nil)
	require.ErrorIs(t, err, broken)
}

func TestBadHeaders(t *testing.T) {
	for name, h := range map[string]Header{
		"too long":           {Len: MaxFrame + 1, Op: OpPing, ID: 1},
		"longest number":     {Len: 1<<32 - 1, Op: OpPing, ID: 1},
		"request without id": {Op: OpPing},
		"reply without id":   {Op: OpPing, Flags: FlagReply},
		"push with id":       {Op: OpDrain, Flags: FlagPush, ID: 1},
		"error, no reply":    {Op: OpPing, Flags: FlagError, ID: 1},
		"push and reply":     {Op: OpPing, Flags: FlagPush | FlagReply},
		"unknown flag":       {Op: OpPing, Flags: 8, ID: 1},
	} {
		t.Run(name, func(t *testing.T) {
			raw := make([]byte, HeaderSize)
			h.put(raw)
			_, _, err := ReadFrame(bufio.NewReader(bytes.NewReader(raw)), MaxFrame, nil)
			require.Equal(t, status.BadFrame, status.Of(err), "%v", err)
		})
	}
}

func TestHeaderBytes(t *testing.T) {
	b := AppendFrame(nil, Header{Op: 0x0201, Flags: FlagReply | FlagError, ID: 0x0807060504030201}, &VerifyReq{Full: true})
	require.Equal(t, "01000000"+"0102"+"0300"+"0102030405060708"+"01", hex.EncodeToString(b))
}

func TestPreambleBytes(t *testing.T) {
	require.Equal(t, "CAGE\x07\x00\x00\x00", string(AppendPreamble(nil, Version)))
	v, err := ParsePreamble([]byte("CAGE\x02\x01\xff\xff and more"))
	require.NoError(t, err, "reserved bytes are ignored")
	require.EqualValues(t, 0x102, v)
	for _, s := range []string{"", "CAGE\x01\x00\x00", "SSH-2.0-", "CAGE\x00\x00\x00\x00", "cage\x01\x00\x00\x00"} {
		_, err := ParsePreamble([]byte(s))
		require.Equal(t, status.BadFrame, status.Of(err), "%q", s)
	}
}

// answer plays the other end of a preamble: it sends and expects bytes.
func answer(t *testing.T, send string) (end net.Conn, sent chan string) {
	t.Helper()
	end, other := net.Pipe()
	sent = make(chan string, 1)
	var running sync.WaitGroup
	running.Go(func() { io.WriteString(other, send) })
	running.Go(func() {
		defer close(sent)
		b := make([]byte, PreambleSize)
		if _, err := io.ReadFull(other, b); err == nil {
			sent <- string(b)
		}
	})
	t.Cleanup(func() {
		end.Close()
		other.Close()
		running.Wait()
	})
	return end, sent
}

func TestPreamble(t *testing.T) {
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	done := make(chan error, 1)
	go func() {
		v, err := Welcome(s)
		if err == nil && v != Version {
			err = fmt.Errorf("client version %d", v)
		}
		done <- err
	}()
	v, err := Greet(c)
	require.NoError(t, err)
	require.Equal(t, Version, v)
	require.NoError(t, <-done)
}

func TestPeerIsNewer(t *testing.T) {
	mine := string(AppendPreamble(nil, Version))
	newer := string(AppendPreamble(nil, Version+1))

	t.Run("client", func(t *testing.T) {
		end, sent := answer(t, newer)
		_, err := Welcome(end)
		require.Equal(t, status.Version, status.Of(err))
		require.ErrorContains(t, err, fmt.Sprintf("server speaks %d, client %d", Version, Version+1))
		require.Equal(t, mine, <-sent, "the client is told what the server speaks")
	})
	t.Run("server", func(t *testing.T) {
		end, sent := answer(t, newer)
		v, err := Greet(end)
		require.NoError(t, err, "a newer server may speak ours too: its reply to the hello says")
		require.Equal(t, Version+1, v)
		require.Equal(t, mine, <-sent)
	})
	t.Run("server is older", func(t *testing.T) {
		require.NoError(t, CheckVersions(2, 1))
		err := CheckVersions(1, 2)
		require.Equal(t, status.Version, status.Of(err))
		require.EqualError(t, err, "connect: protocol too new: server speaks 1, client 2")
	})
	t.Run("hello", func(t *testing.T) {
		// Whatever a later version does with the rest, version and software stay in front.
		b := append((&HelloReq{Version: 7, Software: "cagefs 9"}).Append(nil)[:10:10], "\xff\xff\xff"...)
		c := NewCursor("hello", b)
		require.EqualValues(t, 7, c.u16())
		require.Equal(t, "cagefs 9", c.str(MaxWord))
	})
}

func TestPreambleOfAnotherProtocol(t *testing.T) {
	end, _ := answer(t, "HTTP/1.1 400 Bad Request\r\n")
	_, err := Greet(end)
	require.Equal(t, status.BadFrame, status.Of(err))
	require.EqualError(t, err, "connect: the other end does not speak Cage")
}
