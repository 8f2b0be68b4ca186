package fusefs

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// knows reports whether attributes of a file are remembered.
func knows(m *memory, id proto.FileID) (ok bool) {
	m.recall(id, func(r *recollection) { ok = r.attr.ID == id })
	return ok
}

func learnAttr(m *memory, id proto.FileID, tenure, since uint64, change proto.LSN) {
	m.learn(id, tenure, since, func(r *recollection) { r.attr = proto.Attr{ID: id, Change: change} })
}

// What was asked before a file was forgotten is not learnt after that, of other files it is.
func TestMemoryForgets(t *testing.T) {
	m := newMemory(100)
	for name, forget := range map[string]func(){
		"forget":       func() { m.forget(1) },
		"forget a lot": func() { m.forget(make([]proto.FileID, maxForgot)...); m.forget(1) },
		"by its name":  func() { m.forgetName(9, "one") },
		"reset":        m.reset,
	} {
		m.learn(9, 1, m.since(), func(r *recollection) { r.name("one", 1) })
		learnAttr(m, 1, 1, m.since(), 1)
		require.True(t, knows(m, 1), name)
		since := m.since()
		forget()
		require.False(t, knows(m, 1), name)
		learnAttr(m, 1, 1, since, 1)
		require.False(t, knows(m, 1), "%s: it was asked before", name)
		learnAttr(m, 1, 1, m.since(), 1)
		require.True(t, knows(m, 1), name)
	}
	since := m.since()
	m.forget(1)
	learnAttr(m, 2, 1, since, 1)
	require.True(t, knows(m, 2))
	learnAttr(m, 3, 0, m.since(), 1)
	require.False(t, knows(m, 3), "there was no lease")

	learnAttr(m, 4, 1, m.since(), 5)
	m.wrote(4, 5)
	require.True(t, knows(m, 4), "it is in the attributes")
	m.wrote(4, 6)
	require.False(t, knows(m, 4))
}

// Another tenure of the lease has nothing to do with what was told under the one before.
func TestMemoryOfATenure(t *testing.T) {
	m := newMemory(100)
	m.learn(1, 1, m.since(), func(r *recollection) { r.mark("user.a", xattr{none: true}) })
	learnAttr(m, 1, 2, m.since(), 1)
	require.Equal(t, uint64(2), m.recall(1, func(r *recollection) { require.Empty(t, r.xattrs) }))
	require.Zero(t, m.recall(2, func(*recollection) { require.Fail(t, "nothing is known") }))
}

// All of it stays within its bound, and what was used last stays.
func TestMemoryIsBounded(t *testing.T) {
	m := newMemory(100)
	learnAttr(m, 1, 1, m.since(), 1)
	for id := proto.FileID(2); id < 300; id++ {
		learnAttr(m, id, 1, m.since(), 1)
		require.True(t, knows(m, 1))
		require.LessOrEqual(t, m.used(), 100)
	}
	require.True(t, knows(m, 299))
	require.False(t, knows(m, 2))
	var all []proto.DirEntry
	for i := range 200 {
		all = append(all, proto.DirEntry{Name: fmt.Sprint(i), Attr: proto.Attr{ID: 1000}})
	}
	m.learn(400, 1, m.since(), func(r *recollection) { r.list(all, 0) })
	require.LessOrEqual(t, m.used(), 100, "a directory that is larger than all of it")
}

// Names say what is there and what is not; a listing says it of all names.
func TestMemoryOfNames(t *testing.T) {
	r := &recollection{}
	find := func(name string) string {
		id, ok := r.find(name)
		return fmt.Sprint(uint64(id), ok)
	}
	require.Equal(t, "0 false", find("a"))
	r.name("a", 1)
	r.name("none", 0)
	require.Equal(t, "1 true", find("a"))
	require.Equal(t, "0 true", find("none"))
	require.Equal(t, "0 false", find("b"))
	r.list([]proto.DirEntry{{Name: "b", Attr: proto.Attr{ID: 2}}}, 0)
	require.Equal(t, "2 true", find("b"))
	require.Equal(t, "0 true", find("a"), "it is not in the listing")
	r.name("none", 0)
	require.NotNil(t, r.whole)
	r.name("c", 3)
	require.Nil(t, r.whole, "the listing was another one")
	require.Equal(t, "3 true", find("c"))
	r.list(nil, 0)
	require.Equal(t, "0 true", find("c"), "an empty directory")
}

// Who was not let in by the server is not let in by the memory.
func TestMemoryOfReaders(t *testing.T) {
	r := &recollection{}
	alice, bob := proto.Ident{UID: 1, GID: 1}, proto.Ident{UID: 2, GID: 1}
	r.allow(alice, wire.OpenRead)
	require.True(t, r.allows(alice, wire.OpenRead))
	require.False(t, r.allows(bob, wire.OpenRead))
	require.False(t, r.allows(proto.Ident{UID: 1, GID: 2}, wire.OpenRead))
	r.allow(bob, 0)
	require.False(t, r.allows(bob, wire.OpenRead), "it was a program to be run")
	require.True(t, r.allows(bob, 0))
	for i := range 2 * maxReaders {
		r.allow(proto.Ident{UID: uint32(10 + i)}, wire.OpenRead)
	}
	require.Len(t, r.readers, maxReaders)
}
