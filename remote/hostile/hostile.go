// Package hostile makes what somebody sends who speaks the protocol and means
// harm: well-formed messages with fields that are wrong, foreign or extreme, and
// frames that are hardly any. The same seed makes the same ones. Tests of both
// halves use it; no program does.
package hostile

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// Gen makes messages. It is for one goroutine.
type Gen struct {
	*rand.Rand
	IDs     []proto.FileID // of files worth trying, also forbidden ones
	Mine    []proto.FileID // of files and directories that may be changed
	Names   []string       // worth trying
	Newest  proto.LSN      // about the newest record
	Session proto.SessionID
}

// New makes a generator.
func New(seed, stream uint64) *Gen { return &Gen{Rand: rand.New(rand.NewPCG(seed, stream))} }

// requests are the opcodes that a client may send, also those that are for the
// beginning of a connection only.
var requests = func() (out []wire.Opcode) {
	for _, op := range slices.Sorted(maps.Keys(wire.Table)) {
		if wire.Table[op].NewRequest != nil {
			out = append(out, op)
		}
	}
	return out
}()

// quiet are those that do not end the connection by themselves.
var quiet = slices.DeleteFunc(slices.Clone(requests), func(op wire.Opcode) bool {
	return op == wire.OpHello || op == wire.OpAttach || op == wire.OpJoin || op == wire.OpBye
})

// Request makes a request; the Seq of a change is to be set. loud allows those
// that end a connection.
func (g *Gen) Request(loud bool) (wire.Opcode, wire.Message) {
	from := quiet
	if loud {
		from = requests
	}
	op := from[g.IntN(len(from))]
	m := wire.Table[op].NewRequest()
	g.fill(reflect.ValueOf(m).Elem())
	return op, m
}

// Reply makes an answer to a request.
func (g *Gen) Reply(op wire.Opcode) wire.Message {
	m := wire.Table[op].NewReply()
	g.fill(reflect.ValueOf(m).Elem())
	return m
}

// Push makes a push.
func (g *Gen) Push() (wire.Opcode, wire.Message) {
	for {
		op := []wire.Opcode{wire.OpChanged, wire.OpChanged, wire.OpRecall}[g.IntN(3)]
		m := wire.Table[op].NewPush()
		g.fill(reflect.ValueOf(m).Elem())
		return op, m
	}
}

// Bend changes some bytes of a frame behind the length, or of all of it.
func (g *Gen) Bend(frame []byte, header bool) []byte {
	from := wire.HeaderSize
	if header {
		from = 0
	}
	for range 1 + g.IntN(4) {
		if len(frame) > from {
			frame[from+g.IntN(len(frame)-from)] ^= 1 << g.IntN(8)
		}
	}
	return frame
}

// Garbage is bytes that begin like nothing.
func (g *Gen) Garbage() []byte {
	b := make([]byte, 1+g.IntN(200))
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return b
}

func (g *Gen) fill(v reflect.Value) {
	switch v.Type() {
	case reflect.TypeFor[proto.FileID]():
		v.SetUint(uint64(g.ID()))
		return
	case reflect.TypeFor[proto.LSN]():
		v.SetUint(g.lsn())
		return
	case reflect.TypeFor[proto.SessionID]():
		v.SetUint(g.number(64, uint64(g.Session)))
		return
	case reflect.TypeFor[proto.Ident](): // root of root, mostly
		v.Set(reflect.ValueOf(proto.Ident{Groups: slices.Repeat([]uint32{0}, g.sometimes(2000))}))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			g.fill(v.Field(i))
		}
		g.tame(v.Addr().Interface())
	case reflect.Interface:
		g.fill(v.Elem().Elem())
	case reflect.Slice:
		n := g.IntN(4)
		if v.Type().Elem().Kind() == reflect.Uint8 {
			n = g.IntN(300) + g.sometimes(70_000)
		} else {
			n += g.sometimes(1500)
		}
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			g.fill(v.Index(i))
		}
	case reflect.String:
		v.SetString(g.Name())
	case reflect.Bool:
		v.SetBool(g.IntN(2) == 0)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(g.number(v.Type().Bits(), g.Uint64N(64)))
	case reflect.Int64:
		v.SetInt(int64(g.number(64, g.Uint64N(64))))
	default:
		panic(fmt.Sprintf("hostile: a field of type %s", v.Type()))
	}
}

// tame keeps what is nobody's fault out: an allocation that the disk has room
// for is granted, and takes it from the machine of the test.
func (g *Gen) tame(m any) {
	switch m := m.(type) {
	case *proto.Allocate:
		if m.Len > 1<<20 && m.Len < 1<<62 {
			m.Len = 1 << 20
		}
		if g.IntN(2) == 0 {
			m.Mode = []uint32{0, 1, 3, 16, 17}[g.IntN(5)]
		}
	case *proto.Make:
		if g.IntN(4) > 0 {
			types := []uint32{proto.ModeRegular, proto.ModeDir, proto.ModeSymlink, proto.ModeFIFO, proto.ModeSocket, proto.ModeChar, proto.ModeBlock}
			m.Mode = types[g.IntN(len(types))] | g.Uint32N(0o10000)
			m.Umask, m.Propose = 0, 0
			if m.Mode&proto.ModeType != proto.ModeSymlink {
				m.Target = ""
			}
		}
	case *proto.SetAttr:
		if g.IntN(2) == 0 {
			m.Mask, m.Mode = 1<<g.IntN(8), g.Uint32N(0o10000)
		}
	case *wire.ReadReq:
		if g.IntN(2) == 0 {
			m.Off = g.Uint64N(64)
		}
		m.Len = g.Uint32N(4096) + uint32(g.sometimes(proto.MaxIO))
	}
}

// number is one that fits into bits: an extreme, any, or the usual one.
func (g *Gen) number(bits int, usual uint64) uint64 {
	most := uint64(math.MaxUint64) >> (64 - bits)
	switch g.IntN(8) {
	case 0:
		return most - g.Uint64N(3)
	case 1:
		return most>>1 + g.Uint64N(3) - 1
	case 2:
		return g.Uint64() & most >> g.IntN(bits)
	}
	return usual & most
}

// ID is the number of a file, or of none.
func (g *Gen) ID() proto.FileID {
	switch k := g.IntN(12); {
	case k < 4 && len(g.Mine) > 0:
		return g.Mine[g.IntN(len(g.Mine))]
	case k < 8 && len(g.IDs) > 0:
		return g.IDs[g.IntN(len(g.IDs))]
	case k < 10:
		return proto.FileID(g.Uint64N(128))
	case k < 11:
		return proto.MaxFileID - proto.FileID(g.Uint64N(4)) // those that the journal calls its own directories among them
	}
	return proto.FileID(g.number(64, 1<<48|1))
}

func (g *Gen) lsn() uint64 {
	if g.IntN(2) == 0 {
		return 0
	}
	return g.number(64, g.Uint64N(uint64(g.Newest)+3))
}

var badNames = []string{
	"", ".", "..", "/", "../../etc/passwd", "/etc/passwd", "a/b", ".cage", ".cage/wal", "wal", "checkpoint", "x\x00y", "\x00",
	strings.Repeat("n", 255), strings.Repeat("n", 256), strings.Repeat("../", 1000), "\xff\xfe", "user.x", "trusted.x", "security.capability",
	"security.selinux", "system.posix_acl_access", "system.x", "user.", "\x1b[2J", "new\nline", "@1",
}

// Name is one of a file, a path, an attribute, an export.
func (g *Gen) Name() string {
	switch k := g.IntN(6); {
	case k < 3 && len(g.Names) > 0:
		return g.Names[g.IntN(len(g.Names))]
	case k < 5:
		return fmt.Sprintf("n%d", g.IntN(40))
	}
	return badNames[g.IntN(len(badNames))]
}

// sometimes is mostly 0, otherwise up to most.
func (g *Gen) sometimes(most int) int {
	if g.IntN(50) > 0 {
		return 0
	}
	return g.IntN(most + 1)
}
