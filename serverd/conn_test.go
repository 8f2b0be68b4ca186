package serverd

import (
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

func TestHelloRefused(t *testing.T) {
	r := start(t, Options{})
	for name, c := range map[string]struct {
		req  wire.HelloReq
		code status.Code
		text string
	}{
		"newer client":   {req: wire.HelloReq{Version: wire.Version + 1}, code: status.Version, text: fmt.Sprintf("server speaks %d, client %d", wire.Version, wire.Version+1)},
		"unknown export": {req: wire.HelloReq{Export: "nothing"}, code: status.UnknownExport, text: "nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			p := r.dial()
			_, err := p.hello(c.req)
			require.Equal(t, c.code, codeOf(err))
			require.ErrorContains(t, err, c.text)
			p.gone()
		})
	}
}

func TestFirstFrameMustBeHello(t *testing.T) {
	r := start(t, Options{})
	p := r.dial()
	p.send(wire.OpPing, &wire.Empty{})
	p.gone()
}

func TestAttachWithoutSession(t *testing.T) {
	r := start(t, Options{})
	err := r.dial().call(wire.OpAttach, &wire.AttachReq{Version: wire.Version, Session: 77}, &wire.Empty{})
	require.Equal(t, status.LostSession, codeOf(err))
}

func TestWrongKey(t *testing.T) {
	r := start(t, Options{})
	stranger := auth.OpenKeyring(t.TempDir())
	_, err := r.tryDial(stranger)
	require.Equal(t, status.WrongKey, codeOf(err))

	raw, err := net.Dial("tcp", r.Addr().String())
	require.NoError(t, err)
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(patience))
	raw.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
	_, err = raw.Read(make([]byte, 4096))
	for err == nil {
		_, err = raw.Read(make([]byte, 4096))
	}
	require.NotErrorIs(t, err, errTimeout)
}

func TestListingExports(t *testing.T) {
	r := start(t, Options{})
	p := r.dial()
	rep, err := p.hello(wire.HelloReq{})
	require.NoError(t, err)
	require.Equal(t, wire.Version, rep.Version)
	require.Zero(t, rep.Session)
	var list wire.ExportsRep
	require.NoError(t, p.call(wire.OpExports, &wire.Empty{}, &list))
	require.Empty(t, list.Names)
	require.NoError(t, p.call(wire.OpPing, &wire.Empty{}, &wire.Empty{}))
	require.Equal(t, status.UnknownExport, codeOf(p.call(wire.OpGetAttr, &wire.IDReq{ID: 1}, &wire.AttrRep{})))
	sync := &wire.ChangeReq{Seq: 1, Op: &proto.Sync{ID: 1}}
	require.Equal(t, status.UnknownExport, codeOf(p.call(wire.ChangeOpcode(sync.Op), sync, &wire.ChangeRep{})))
	require.NoError(t, p.call(wire.OpBye, &wire.Empty{}, &wire.Empty{}))
	p.gone()
}

func TestExportsOfAKey(t *testing.T) {
	k := auth.ClientKey{Exports: []string{"a"}}
	require.True(t, maySee(&k, "a"))
	require.False(t, maySee(&k, "b"))
	require.True(t, maySee(&auth.ClientKey{}, "b"))
}

func TestHostileFrames(t *testing.T) {
	r := start(t, Options{})
	header := func(length uint32, op wire.Opcode, flags uint16, id uint64) []byte {
		b := binary.LittleEndian.AppendUint32(nil, length)
		b = binary.LittleEndian.AppendUint16(b, uint16(op))
		b = binary.LittleEndian.AppendUint16(b, flags)
		return binary.LittleEndian.AppendUint64(b, id)
	}
	for name, bytes := range map[string][]byte{
		"huge length":    header(0xffffffff, wire.OpRead, 0, 1),
		"a reply":        header(0, wire.OpRead, uint16(wire.FlagReply), 1),
		"unknown flags":  header(0, wire.OpRead, 0x8000, 1),
		"no id":          header(0, wire.OpRead, 0, 0),
		"second hello":   wire.AppendFrame(nil, wire.Request(wire.OpHello, 9), &wire.HelloReq{Version: 1}),
		"garbage":        []byte("this is no frame, but long enough for a header"),
		"a push":         header(0, wire.OpChanged, uint16(wire.FlagPush), 0),
		"half and close": header(100, wire.OpRead, 0, 1),
	} {
		t.Run(name, func(t *testing.T) {
			p := r.dial()
			_, err := p.hello(wire.HelloReq{})
			require.NoError(t, err)
			_, err = p.tls.Write(bytes)
			require.NoError(t, err)
			if name == "half and close" {
				p.tls.CloseWrite()
			}
			p.gone()
		})
	}
	t.Run("answered", func(t *testing.T) {
		p := r.dial()
		_, err := p.hello(wire.HelloReq{})
		require.NoError(t, err)
		require.Equal(t, status.Unsupported, codeOf(p.call(999, &wire.Empty{}, &wire.Empty{})))
		require.Equal(t, status.Unsupported, codeOf(p.call(wire.OpChanged, &wire.Empty{}, &wire.Empty{})))
		require.Equal(t, status.BadFrame, codeOf(p.call(wire.OpLookup, &wire.Empty{}, &wire.AttrRep{})))
		require.NoError(t, p.call(wire.OpPing, &wire.Empty{}, &wire.Empty{}), "the connection goes on")
	})
}

// A header alone makes nobody allocate what it announces.
func TestHugeLengthAllocatesNothing(t *testing.T) {
	r := start(t, Options{})
	p := r.dial()
	_, err := p.hello(wire.HelloReq{})
	require.NoError(t, err)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	b := binary.LittleEndian.AppendUint32(nil, 1<<31)
	b = binary.LittleEndian.AppendUint16(b, uint16(wire.OpRead))
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint64(b, 1)
	p.tls.Write(b)
	p.gone()
	runtime.ReadMemStats(&after)
	require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(8<<20))
}

func TestSilentBeforeHelloIsDropped(t *testing.T) {
	r := start(t, Options{Handshake: 500 * time.Millisecond})
	raw, err := net.Dial("tcp", r.Addr().String())
	require.NoError(t, err)
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(patience))
	_, err = raw.Read(make([]byte, 1))
	require.NotErrorIs(t, err, errTimeout)
	r.dial().gone() // preamble, then silence
}

func TestIdleIsDroppedAndPingsKeep(t *testing.T) {
	const idle = 300 * time.Millisecond
	r := start(t, Options{Idle: idle})
	p := r.dial()
	_, err := p.hello(wire.HelloReq{})
	require.NoError(t, err)
	until := time.Now().Add(2 * idle)
	for tick := time.NewTicker(idle / 10); time.Now().Before(until); <-tick.C {
		require.NoError(t, p.call(wire.OpPing, &wire.Empty{}, &wire.Empty{}))
	}
	p.gone()
}

func TestRevokedKeyIsDropped(t *testing.T) {
	r := start(t, Options{Grace: time.Millisecond, Forget: time.Hour})
	p := r.dial()
	_, err := p.hello(wire.HelloReq{})
	require.NoError(t, err)
	r.revokeAll()
	p.gone()
}

// Who does not say hello is in nobody's way: the oldest of them goes.
func TestTooManyUnknownConnections(t *testing.T) {
	r := start(t, Options{Handshake: time.Minute})
	var all []net.Conn
	for range 4 * maxUnknown {
		raw, err := net.Dial("tcp", r.Addr().String())
		require.NoError(t, err)
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(patience))
		all = append(all, raw)
	}
	for _, raw := range all[:3*maxUnknown] {
		_, err := raw.Read(make([]byte, 1))
		require.Error(t, err)
		require.NotErrorIs(t, err, errTimeout)
	}
	r.mu.Lock()
	require.LessOrEqual(t, len(r.pending), maxUnknown)
	r.mu.Unlock()
	_, err := r.dial().hello(wire.HelloReq{})
	require.NoError(t, err)
}

// A client that asks and asks and never reads is dropped, and until then the
// server stops reading it.
func TestSlowReaderIsDropped(t *testing.T) {
	r := serve(t, Options{Stall: 200 * time.Millisecond})
	p, _ := r.on()
	made, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	_, err = p.change(2, &proto.Write{ID: made.ID, Data: make([]byte, 1<<20)})
	require.NoError(t, err)
	for range 64 { // MiB, more than the kernel holds of a connection
		p.send(wire.OpRead, &wire.ReadReq{ReqHeader: header(), ID: made.ID, Len: 1 << 20})
	}
	require.Eventually(t, func() bool { return len(r.connections()) == 0 }, patience, time.Millisecond)
}

func TestDrain(t *testing.T) {
	r := start(t, Options{})
	p := r.dial()
	_, err := p.hello(wire.HelloReq{})
	require.NoError(t, err)
	r.stop()
	f, err := p.next()
	require.NoError(t, err)
	require.Equal(t, wire.Push(wire.OpDrain), f.head)
	p.gone()
	p.tls.Close()
	r.halt()
	_, err = r.tryDial(r.keys)
	require.Error(t, err)
}

func TestPanicIsAnswered(t *testing.T) {
	before := handlers[wire.OpUsage]
	handlers[wire.OpUsage] = func(*call, wire.Message) (wire.Message, error) { panic("secrets") }
	t.Cleanup(func() { handlers[wire.OpUsage] = before })
	r := serve(t, Options{})
	p, _ := r.on()
	err := p.call(wire.OpUsage, &wire.Empty{}, &wire.UsageRep{})
	require.Equal(t, status.Internal, codeOf(err))
	require.NotContains(t, err.Error(), "secrets", "what it was is for the log")
	require.NoError(t, p.call(wire.OpPing, &wire.Empty{}, &wire.Empty{}), "the connection goes on")
}
