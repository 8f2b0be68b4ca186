// Package serverd is the server: listeners, connections, sessions, and one file
// for each family of operations. It turns requests of the wire into calls of
// package journal, and their outcomes into replies.
//
// It promises that a session's changes are submitted in the order of their
// numbers, each on behalf of a mapped and believed identity; that every
// operation is checked against that identity; that a lost connection loses
// nothing of its session; that no client, however slow or hostile, costs more
// than a bounded amount of memory; and that Serve returns only after everything
// that was received is answered and every goroutine has ended. It must not know
// how the journal keeps its promises.
//
// # The way of a request
//
//	conn.go readLoop -> gate.go acquire -> dispatch.go -> names.go, data.go, … -> journal -> outq.go -> conn.go writeLoop
//	                                    -> changes.go (main connection, in order) -> journal.Submit
//	journal commit loop -> feed.go Publish -> outq.go push -> conn.go writeLoop
//
// # Goroutines
//
// A connection has its reader (the goroutine that accepted it), its writer, one
// for each request in the works, and, on a main connection, the one that submits
// changes. Leaving the reader or the writer ends the other; the connection's end
// waits for all. The server has one per listener, and the housekeeper.
//
// # Lock order
//
//	session.attach > Server.mu > session.mu > outq.mu
//	                               Feed.mu > outq.mu
//	gate.mu, pastCache.mu: leaves; conn.opening > session.mu
//
// session.attach is held by the goroutine that takes a session over or ends it,
// also over calls of the journal and while it waits for the old connection's
// end; nothing that such an end needs takes it. No other lock is held over a
// call of the journal, the network or the disk.
package serverd
