package remote

import (
	"context"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/simnet"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

func lookup(s *Session, ctx context.Context) error {
	_, err := s.Lookup(ctx, wire.ReqHeader{}, proto.RootID, "x")
	return err
}

func TestPatience(t *testing.T) {
	const patience = 20 * time.Second
	tests := map[string]struct {
		lose func(srv *server)
		text string
		heal func(srv *server)
	}{
		"frozen": {
			lose: func(srv *server) { srv.net.Freeze("client", "server") },
			text: "no answer from server:7400 for 20s",
			heal: func(srv *server) { srv.net.Heal("client", "server") },
		},
		"stopped": {
			lose: func(srv *server) { srv.stop() },
			text: "connection refused: is cageserverd running there?",
			heal: func(srv *server) { srv.start() },
		},
		"unreachable": {
			lose: func(srv *server) { srv.net.Partition("client", "server"); srv.net.Cut("client", "server") },
			text: "no route to host",
			heal: func(srv *server) { srv.net.Heal("client", "server") },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newServer(t, simnet.New(1), 0)
				o := srv.options()
				o.Patience = patience
				s := srv.dial(o)
				tt.lose(srv)
				time.Sleep(100 * time.Millisecond)
				seq, err := s.Log(ctx, who, write(5, 0, "kept"))
				require.NoError(t, err, "accepted without a connection")

				type outcome struct {
					what string
					err  error
					took time.Duration
				}
				outcomes := make(chan outcome)
				calls := map[string]func() error{
					"read":   func() error { return lookup(s, ctx) },
					"change": func() error { _, err := s.Do(ctx, who, mkdir("d")); return err },
					"wait":   func() error { return s.Wait(ctx, seq) },
				}
				for what, call := range calls {
					go func() {
						start := time.Now()
						err := call()
						outcomes <- outcome{what, err, time.Since(start)}
					}()
				}
				for range calls {
					o := <-outcomes
					require.Equal(t, status.Timeout, status.Of(o.err), o.what)
					require.Contains(t, o.err.Error(), tt.text, o.what)
					require.Equal(t, patience, o.took, o.what)
				}
				require.Positive(t, s.Status().Unapplied, "the write; the change only if it was sent")
				tt.heal(srv)
				require.NoError(t, s.Sync(ctx, who))
				require.Equal(t, "kept", string(srv.file(5)), "delivered, although nobody waits")
				require.NoError(t, s.TakeError(0))
			})
		})
	}
}

func TestSlowAnswerIsNotALostServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		o := srv.options()
		o.Patience = 30 * time.Second
		s := srv.dial(o)
		srv.set(func() { srv.hold = holding(wire.OpVerify) })
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		start := time.Now()
		_, err := s.Verify(ctx, true)
		require.Equal(t, status.Timeout, status.Of(err))
		require.ErrorIs(t, err, context.DeadlineExceeded, "the context's end, for pings are answered")
		require.Equal(t, 10*time.Minute, time.Since(start))
		require.Equal(t, Online, s.Status().State)
	})
}

func TestHardWaitsUntilInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		srv.stop()
		synctest.Wait() // until that is known
		ctx, cancel := context.WithCancel(ctx)
		errs := make(chan error, 2)
		go func() { errs <- lookup(s, ctx) }()
		go func() {
			_, err := s.Do(ctx, who, mkdir("d"))
			errs <- err
		}()
		time.Sleep(24 * time.Hour)
		require.Empty(t, errs)
		cancel()
		require.Equal(t, status.Interrupted, status.Of(<-errs))
		require.Equal(t, status.Interrupted, status.Of(<-errs))
		require.Empty(t, s.queue, "the read is forgotten")
		require.Zero(t, s.Status().Unapplied, "so is the change, which was never sent")
		srv.start()
		require.NoError(t, s.Sync(context.Background(), who))
		srv.set(func() { require.Empty(t, srv.sessions[101].applied) })
	})
}

// Who asks of a server that has long been gone is not kept for the whole patience
// again: a program that goes through a thousand files would take a day to fail.
func TestAServerThatIsGoneFailsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		o := srv.options()
		o.Patience = 30 * time.Second
		s := srv.dial(o)
		srv.stop()
		took := func() time.Duration {
			began := time.Now()
			require.Equal(t, status.Timeout, status.Of(lookup(s, ctx)))
			return time.Since(began)
		}
		require.Equal(t, o.Patience, took())
		time.Sleep(time.Second)
		require.Equal(t, brief, took())
		srv.start()
		time.Sleep(2 * maxPause)
		require.NoError(t, lookup(s, ctx))
		srv.stop()
		time.Sleep(time.Second)
		require.Equal(t, o.Patience, took(), "it was there in between")
	})
}

// A server that sends a byte now and then is no better than one that is silent:
// only whole frames are signs of life.
func TestServerThatDripsBytes(t *testing.T) {
	for name, tt := range map[string]struct {
		patience, within time.Duration
		hard             bool
	}{
		"soft": {5 * time.Second, 5 * time.Second, false},
		"hard": {0, deadAfter + pingAfter, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newServer(t, simnet.New(1), 0)
				o := srv.options()
				o.Patience = tt.patience
				s := srv.dial(o)
				srv.set(func() { srv.drip = 10 * time.Second })
				began := time.Now()
				done := make(chan error, 1)
				go func() { done <- lookup(s, ctx) }()
				if tt.hard { // it waits for ever, but not on this connection
					time.Sleep(tt.within)
					synctest.Wait()
					require.Equal(t, Reconnecting, s.Status().State)
					srv.set(func() { srv.drip = 0 })
					require.NoError(t, <-done)
					return
				}
				require.Equal(t, status.Timeout, status.Of(<-done))
				require.LessOrEqual(t, time.Since(began), tt.within)
				srv.set(func() { srv.drip = 0 })
			})
		})
	}
}

// A Sync with nothing new to sync needs no server.
func TestSyncOfNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		o := srv.options()
		o.Patience = 5 * time.Second
		s := srv.dial(o)
		_, err := s.Do(ctx, who, mkdir("d"))
		require.NoError(t, err)
		require.NoError(t, s.Sync(ctx, who))
		srv.stop()
		require.NoError(t, s.Sync(ctx, who))
		_, err = s.Log(ctx, who, write(5, 0, "x"))
		require.NoError(t, err)
		require.Equal(t, status.Timeout, status.Of(s.Sync(ctx, who)))
		srv.start()
		require.NoError(t, s.Sync(ctx, who))
	})
}

func TestInterruptedChangeThatFailsIsSticky(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		srv.fail = func(op proto.Op) error {
			if _, ok := op.(*proto.Make); ok {
				return status.Exists
			}
			return nil
		}
		s := srv.dial(srv.options())
		srv.set(func() { srv.hold = holding(makeOp) })
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := s.Do(ctx, who, mkdir("d"))
		require.Equal(t, status.Timeout, status.Of(err))
		srv.set(func() { srv.hold = nil })
		srv.net.Cut("client", "server")
		require.NoError(t, s.Sync(context.Background(), who))
		require.ErrorIs(t, s.TakeError(proto.RootID), status.Exists)
	})
}

// A server drops a connection from which nothing comes, also one on which it has
// a lot to tell: who only listens must say that it is there.
func TestListenerGivesSignsOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		pings := 0 // guarded by srv.mu
		srv.set(func() {
			srv.hold = func(_ *serverConn, h wire.Header) bool {
				if h.Op == wire.OpPing {
					pings++
				}
				return false
			}
		})
		s := srv.dial(srv.options())
		for i := range 60 {
			require.True(t, srv.main().push(wire.OpChanged, &wire.Changed{ID: 9, Change: proto.LSN(i + 1)}))
			time.Sleep(time.Second)
		}
		srv.set(func() { require.GreaterOrEqual(t, pings, 3) })
		require.Equal(t, 0, s.Status().Resumes)
	})
}

func TestSilentConnectionIsReplaced(t *testing.T) {
	tests := map[string]struct {
		ask   bool
		after time.Duration // from the freeze to the loss
	}{
		"with a request": {true, deadAfter},
		"idle":           {false, (maxMissed + 1) * pingAfter},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newServer(t, simnet.New(1), 0)
				s := srv.dial(srv.options())
				time.Sleep(time.Hour)
				require.Equal(t, Online, s.Status().State, "pings keep it")
				require.NoError(t, lookup(s, ctx))
				srv.net.Freeze("client", "server")
				done := make(chan error, 1)
				if tt.ask {
					go func() { done <- lookup(s, ctx) }()
				}
				time.Sleep(tt.after - time.Millisecond)
				synctest.Wait()
				require.Equal(t, Online, s.Status().State)
				if tt.ask {
					require.Equal(t, tt.after-time.Millisecond, s.Status().Silent)
				} else {
					require.Zero(t, s.Status().Silent, "nobody waits for it")
				}
				time.Sleep(2 * time.Millisecond)
				synctest.Wait()
				require.Equal(t, Reconnecting, s.Status().State)
				require.Contains(t, s.Status().LastError, "nothing heard for")
				srv.net.Heal("client", "server")
				if tt.ask {
					require.NoError(t, <-done)
				}
				require.NoError(t, lookup(s, ctx))
				require.Equal(t, 1, s.Status().Resumes)
				require.Zero(t, s.Status().Silent)
			})
		})
	}
}

func TestCloseDeliversWhatItCan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		srv.stop()
		seq, err := s.Log(ctx, who, write(5, 0, "late"))
		require.NoError(t, err)
		closed, waiting := make(chan error, 1), make(chan error, 1)
		go func() { waiting <- s.Wait(ctx, seq) }()
		synctest.Wait()
		go func() { closed <- s.Close(ctx) }()
		time.Sleep(time.Hour)
		require.Empty(t, closed, "its context does not end")
		srv.start()
		require.NoError(t, <-closed)
		require.NoError(t, <-waiting)
		require.Equal(t, "late", string(srv.file(5)))
	})
}

func TestCloseTellsWhatWasNotDelivered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		srv.stop()
		for i := range 3 {
			_, err := s.Log(ctx, who, write(5, i*100_000, string(make([]byte, 40<<10))))
			require.NoError(t, err)
		}
		waiting := make(chan error, 1)
		go func() { waiting <- s.Wait(ctx, 3) }()
		synctest.Wait()
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		start := time.Now()
		err := s.Close(short)
		require.Equal(t, time.Minute, time.Since(start))
		require.EqualError(t, err, "close: 3 changes, 120 KiB not delivered to server:7400: "+
			"connect server:7400: connection refused: is cageserverd running there?")
		require.Equal(t, status.Unreachable, status.Of(err))
		require.Equal(t, status.Unreachable, status.Of(<-waiting))
		require.Equal(t, err, s.Close(ctx), "the second time as the first")
	})
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		srv.set(func() { srv.hold = holding(makeOp) })
		done := make(chan error, 2)
		go func() {
			_, err := s.Do(ctx, who, mkdir("a"))
			done <- err
		}()
		synctest.Wait()
		c := srv.main()
		c.push(wire.OpDrain, &wire.Empty{})
		synctest.Wait()
		go func() { done <- lookup(s, ctx) }()
		synctest.Wait()
		require.Zero(t, srv.count(wire.OpLookup, false), "nothing new on a connection that ends")
		require.Equal(t, Online, s.Status().State, "it waits for the answer")
		// What the server has not begun it refuses: that is for the next connection.
		srv.set(func() { srv.hold = nil })
		c.reply(wire.Request(makeOp, 1), nil, status.Draining)
		require.NoError(t, <-done)
		require.NoError(t, <-done)
		srv.set(func() { require.Len(t, srv.hellos, 2) })
		require.Equal(t, 1, s.Status().Resumes)
	})
}

func TestDataConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		n.Delay(10*time.Millisecond, 0)
		srv := newServer(t, n, 2)
		srv.files[5] = []byte("0123456789")
		s := srv.dial(srv.options())
		require.Zero(t, n.Conns("server", 7401), "made when first wanted")
		read := func() {
			t.Helper()
			p := make([]byte, 4)
			k, _, _, err := s.ReadAt(ctx, wire.ReqHeader{}, 5, p, 3)
			require.NoError(t, err)
			require.Equal(t, "3456", string(p[:k]))
		}
		read()
		require.Equal(t, 1, srv.count(wire.OpRead, false), "not waiting for them")
		time.Sleep(time.Second)
		require.Equal(t, 2, s.Status().DataConns)
		read()
		require.Equal(t, 1, srv.count(wire.OpRead, true))

		// Reads in flight spread; those on a lost connection are asked again elsewhere.
		srv.set(func() { srv.hold = func(c *serverConn, h wire.Header) bool { return c.data } })
		done := make(chan error, 4)
		for range 4 {
			go func() {
				_, _, _, err := s.ReadAt(ctx, wire.ReqHeader{}, 5, make([]byte, 4), 0)
				done <- err
			}()
			synctest.Wait()
		}
		time.Sleep(time.Second)
		require.Equal(t, 5, srv.count(wire.OpRead, true))
		require.Equal(t, 1, n.CutPort("server", 7401))
		require.NoError(t, <-done)
		require.NoError(t, <-done)
		require.Equal(t, 3, srv.count(wire.OpRead, false), "two of four")
		require.Empty(t, done)
		require.Equal(t, Online, s.Status().State)
		require.Equal(t, 1, n.CutPort("server", 7402))
		require.NoError(t, <-done)
		require.NoError(t, <-done)
		require.Len(t, srv.hellos, 1, "the main connection stays")

		// Made again, when wanted and after a rest.
		srv.set(func() { srv.hold = nil })
		time.Sleep(portRest)
		read()
		time.Sleep(time.Second)
		require.Equal(t, 2, s.Status().DataConns)
		n.CutPort("server", 7400)
		read()
		require.Equal(t, 1, s.Status().Resumes)
	})
}

func TestDataPortOutOfReach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		srv := newServer(t, n, 1)
		srv.set(func() { srv.listeners[1].Close() })
		s := srv.dial(srv.options())
		read := func() {
			_, _, _, err := s.ReadAt(ctx, wire.ReqHeader{}, 5, make([]byte, 4), 0)
			require.NoError(t, err)
			synctest.Wait()
		}
		read()
		read()
		require.Equal(t, 2, srv.count(wire.OpRead, false))
		srv.listen(7401)
		read()
		require.Zero(t, s.Status().DataConns, "not tried again so soon")
		time.Sleep(portRetry)
		read()
		require.Equal(t, 1, s.Status().DataConns)
		read()
		require.Equal(t, 1, srv.count(wire.OpRead, true))
	})
}

func TestDialErrors(t *testing.T) {
	other, err := newKeys(t.TempDir())
	require.NoError(t, err)
	greets := func(version uint16) func(net.Conn) {
		return func(c net.Conn) {
			c.Write(wire.AppendPreamble(nil, version))
			io.Copy(io.Discard, c)
		}
	}
	tests := map[string]struct {
		arrange func(srv *server, o *Options)
		code    status.Code
		text    string
	}{
		"refused": {
			func(srv *server, o *Options) { o.Addr = "server:7500" },
			status.Unreachable, "connect server:7500: connection refused: is cageserverd running there?",
		},
		"unreachable": {
			func(srv *server, o *Options) { srv.net.Partition("client", "server") },
			status.Unreachable, "connect server:7400: no route to host",
		},
		"silent": {
			func(srv *server, o *Options) { srv.net.Freeze("client", "server"); o.Patience = 3 * time.Second },
			status.Unreachable, "connect server:7400: no answer for 3s: is cageserverd running there?",
		},
		"silent for long": {
			func(srv *server, o *Options) { srv.net.Freeze("client", "server") },
			status.Unreachable, "connect server:7400: no answer for 10s: is cageserverd running there?",
		},
		"no port": {
			func(srv *server, o *Options) { o.Addr = "server" },
			status.Invalid, "connect server: missing port in address",
		},
		"unknown export": {
			func(srv *server, o *Options) { o.Export = "hom" },
			status.UnknownExport, `connect server:7400: no export named "hom"; there are: home, src`,
		},
		"no exports at all": {
			func(srv *server, o *Options) { srv.exports = nil },
			status.UnknownExport, `connect server:7400: no export named "home"`,
		},
		"server's key not pinned": {
			func(srv *server, o *Options) { o.Keys = other.ring },
			status.WrongKey, "connect server:7400: no key for server cage:",
		},
		"client's key not admitted": {
			func(srv *server, o *Options) {
				srv.tls = testKeys.state.TLS()
				srv.tls.VerifyConnection = other.state.TLS().VerifyConnection
			},
			status.WrongKey, "the server does not admit this client's key",
		},
		"newer server": {
			func(srv *server, o *Options) {
				srv.refuse = status.Newf(status.Version, "hello", "", "protocol too old: server speaks 3 to 5, client 1")
			},
			status.Version, "connect server:7400: protocol too old: server speaks 3 to 5, client 1",
		},
		"stopping": {
			func(srv *server, o *Options) { srv.refuse = status.Draining },
			status.Draining, "connect server:7400: server is stopping",
		},
		"no such version": {
			func(srv *server, o *Options) { srv.instead = greets(0) },
			status.BadFrame, "protocol version 0",
		},
		"closed": {
			func(srv *server, o *Options) { srv.instead = func(c net.Conn) {} },
			status.Unreachable, "connect server:7400: the connection was closed before it was up",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := newServer(t, simnet.New(1), 0)
				defer srv.stop()
				o := srv.options()
				tt.arrange(srv, &o)
				_, err := Dial(ctx, o)
				require.ErrorContains(t, err, tt.text)
				require.Equal(t, tt.code, status.Of(err))
				require.NotContains(t, err.Error(), "\n")
			})
		})
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := simnet.New(1)
		srv := newServer(t, n, 0)
		defer srv.stop()
		n.Delay(time.Second, 0)
		for after := 500 * time.Millisecond; after < 8*time.Second; after += time.Second {
			ctx, cancel := context.WithTimeout(ctx, after)
			start := time.Now()
			s, err := Dial(ctx, srv.options())
			if err == nil {
				require.Greater(t, after, 6*time.Second)
				require.NoError(t, s.Close(context.Background()))
			} else {
				require.Equal(t, status.Timeout, status.Of(err), "%v", err)
				require.Equal(t, after, time.Since(start))
			}
			cancel()
		}
	})
}

// A server that does not admit the client any more is not waited for, however
// patient the mount; what is not delivered is kept for when it does.
func TestRefusedClientFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options()) // hard
		srv.mu.Lock()
		srv.refuse = status.Newf(status.WrongKey, "connect", "", "not admitted")
		srv.hold = func(*serverConn, wire.Header) bool { return true }
		srv.mu.Unlock()
		waiting := make(chan error)
		go func() { waiting <- lookup(s, ctx) }()
		synctest.Wait()
		srv.stop()
		srv.start()
		cut := time.Now()
		require.Equal(t, status.WrongKey, status.Of(<-waiting), "one that waits already")
		require.Less(t, time.Since(cut), time.Second)
		seq, err := s.Log(ctx, who, write(5, 0, "kept"))
		require.NoError(t, err)
		for range 100 {
			require.Equal(t, status.WrongKey, status.Of(lookup(s, ctx)))
			_, err = s.Do(ctx, who, mkdir("d"))
			require.Equal(t, status.WrongKey, status.Of(err))
			require.ErrorContains(t, err, "not admitted")
		}
		require.Equal(t, status.WrongKey, status.Of(s.Wait(ctx, seq)))
		require.Less(t, time.Since(cut), time.Second)
		require.Equal(t, Reconnecting, s.Status().State)

		srv.mu.Lock()
		srv.refuse, srv.hold = nil, nil
		srv.mu.Unlock()
		time.Sleep(time.Minute)
		require.NoError(t, lookup(s, ctx))
		require.NoError(t, s.Wait(ctx, seq))
		require.Equal(t, "kept", string(srv.file(5)))
	})
}

func TestRefusedClientCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s, err := Dial(ctx, srv.options())
		require.NoError(t, err)
		srv.mu.Lock()
		srv.refuse = status.New(status.WrongKey, "connect", "")
		srv.mu.Unlock()
		srv.stop()
		srv.start()
		_, err = s.Log(ctx, who, write(5, 0, "lost"))
		require.NoError(t, err)
		began := time.Now()
		err = s.Close(ctx)
		require.Equal(t, status.WrongKey, status.Of(err))
		require.ErrorContains(t, err, "1 change, 4 bytes not delivered")
		require.Less(t, time.Since(began), time.Second)
		srv.stop()
	})
}
