package serverd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// cutter dials and remembers, so that a test can cut all connections.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

func (c *cutter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil {
		c.conns = append(c.conns, conn)
	}
	return conn, err
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// The real client writes files while its connections are cut again and again;
// each change is applied once, and all bytes arrive.
func TestClientOverCutConnections(t *testing.T) {
	r := serve(t, Options{DataPorts: 2})
	var net cutter
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := remote.Dial(ctx, remote.Options{
		Addr: r.Addr().String(), Export: "x", Keys: r.keys, Patience: 20 * time.Second, DataPort: true,
		Dial: net.dial, Log: zerolog.Nop(),
	})
	require.NoError(t, err)

	const files, pieces, piece = 40, 8, 10_000
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i + 1)}, pieces*piece) }
	ids := make([]proto.FileID, files)
	for i := range files {
		res, err := s.Do(ctx, self, newFile(fmt.Sprint("f", i)))
		require.NoError(t, err, "made twice, or lost")
		ids[i] = res.ID
		_, err = s.Open(ctx, header(), res.ID, 3, lockset.NoMode)
		require.NoError(t, err)
		for k := range pieces {
			if i%8 == 4 && k == pieces/2 { // with changes on their way
				net.cut()
			}
			_, err := s.Log(ctx, self, &proto.Write{ID: res.ID, Off: uint64(k * piece), Data: content(i)[:piece]})
			require.NoError(t, err)
		}
	}
	require.NoError(t, s.Sync(ctx, self))
	got := make([]byte, pieces*piece)
	for i, id := range ids {
		n, _, size, err := s.ReadAt(ctx, header(), id, got, 0)
		if err == io.EOF {
			err = nil
		}
		require.NoError(t, err)
		require.EqualValues(t, len(got), size)
		require.Equal(t, content(i), got[:n])
		s.Release(id)
	}
	require.Positive(t, s.Status().Resumes)
	require.NoError(t, s.TakeError(0))
	require.Eventually(t, func() bool { return s.Status().State == remote.Online }, patience, time.Millisecond)
	require.NoError(t, s.Close(ctx))
	require.Eventually(t, func() bool { return len(r.Status()) == 0 }, patience, time.Millisecond, "goodbye ends the session")
}

// Who follows the history hears of each change once and in order, however often
// the connection is cut and however slow he is.
func TestFollowOverCutConnections(t *testing.T) {
	r := serve(t, Options{})
	var net cutter
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dial := func(o remote.Options) *remote.Session {
		o.Addr, o.Export, o.Keys, o.Patience, o.Log = r.Addr().String(), "x", r.keys, 20*time.Second, zerolog.Nop()
		s, err := remote.Dial(ctx, o)
		require.NoError(t, err)
		return s
	}
	writer, reader := dial(remote.Options{}), dial(remote.Options{Dial: net.dial})
	defer writer.Close(ctx)
	defer reader.Close(ctx)
	dir, err := writer.Do(ctx, self, &proto.Make{Dir: proto.RootID, Name: "d", Mode: proto.ModeDir | 0o755})
	require.NoError(t, err)

	const files = 300
	began := reader.Status().Session
	got := make(chan string, files)
	done := errors.New("all are there")
	ended := make(chan error, 1)
	begin, err := reader.Moment(ctx, proto.Moment{Kind: proto.MomentNow})
	require.NoError(t, err)
	go func() {
		ended <- reader.Follow(ctx, wire.LogReq{Ident: self, Path: "d", After: begin.LSN}, func(e proto.Entry) error {
			if got <- e.Kind + " " + e.NewPath; e.NewPath == fmt.Sprint("d/", files-1) {
				return done
			}
			return nil
		})
	}()
	heard := 0
	for i := range files {
		name := fmt.Sprint(i)
		_, err := writer.Do(ctx, self, &proto.Make{Dir: proto.RootID, Name: name, Mode: proto.ModeRegular | 0o644})
		require.NoError(t, err)
		_, err = writer.Do(ctx, self, &proto.Rename{Dir: proto.RootID, Name: name, NewDir: dir.ID, NewName: name})
		require.NoError(t, err)
		if i%50 == 25 {
			net.cut()
		}
		for ; i%10 == 9 && heard <= i; heard++ { // sometimes he waits for news, sometimes there are many
			require.Equal(t, fmt.Sprint("rename d/", heard), <-got)
		}
	}
	require.Equal(t, files, heard)
	require.ErrorIs(t, <-ended, done)
	require.Empty(t, got)
	require.Equal(t, began, reader.Status().Session)
	require.Positive(t, reader.Status().Resumes)
}
