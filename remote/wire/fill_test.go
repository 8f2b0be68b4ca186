package wire

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// part is one message of the Table: a request, reply or push.
type part struct {
	op    Opcode
	kind  string
	fresh func() Message
	flags Flags
}

func (p part) String() string { return p.op.String() + " " + p.kind }

// header is that of a frame with this part.
func (p part) header() Header {
	if p.flags == FlagPush {
		return Push(p.op)
	}
	return Header{Op: p.op, Flags: p.flags, ID: 0x1122334455667788}
}

// parts is every message of the Table and the error, in order.
func parts() []part {
	var out []part
	for _, op := range slices.Sorted(maps.Keys(Table)) {
		s := Table[op]
		for _, p := range []part{
			{op, "request", s.NewRequest, 0}, {op, "reply", s.NewReply, FlagReply}, {op, "push", s.NewPush, FlagPush},
		} {
			if p.fresh != nil {
				out = append(out, p)
			}
		}
	}
	return append(out, part{OpPing, "error", fresh[ErrorRep], FlagReply | FlagError})
}

// fill sets every field of a message to a value that is not zero and within its
// limits, the same ones for the same source.
func fill(m Message, r *rand.Rand) Message {
	fillValue(reflect.ValueOf(m).Elem(), r)
	return m
}

func fillValue(v reflect.Value, r *rand.Rand) {
	switch v.Interface().(type) {
	case proto.MomentKind:
		v.SetUint(uint64(proto.MomentLabel))
		return
	case lockset.Kind:
		v.SetUint(uint64(1 + r.IntN(int(lockset.Kinds)-1)))
		return
	case proto.LeaseMode:
		v.SetUint(uint64(1 + r.IntN(int(proto.WriteLease))))
		return
	case proto.NewFiles:
		v.SetUint(uint64(proto.NewKeep))
		return
	case status.Code:
		v.SetUint(uint64(1 + r.IntN(len(status.Codes())-1)))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fillValue(v.Field(i), r)
		}
		if q, ok := v.Addr().Interface().(*ReadReq); ok {
			q.Len = 1 + q.Len%proto.MaxIO
		}
	case reflect.Interface:
		fillValue(v.Elem().Elem(), r)
	case reflect.Slice:
		n := 1 + r.IntN(3)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		for i := range n {
			fillValue(v.Index(i), r)
		}
	case reflect.String:
		v.SetString(strings.Repeat("x", r.IntN(4)) + fmt.Sprint(r.IntN(1000)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		bits := 1 + r.IntN(v.Type().Bits())
		v.SetUint(1 + r.Uint64()>>1>>(v.Type().Bits()-bits)>>(64-v.Type().Bits()))
	case reflect.Int64:
		v.SetInt(1 + r.Int64() - r.Int64())
	default:
		panic(fmt.Sprintf("message with a field of type %s", v.Type()))
	}
}

// zeroField is the path of a field of v that was left zero, or "".
func zeroField(v reflect.Value, path string) string {
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if bad := zeroField(v.Field(i), path+"."+v.Type().Field(i).Name); bad != "" {
				return bad
			}
		}
		return ""
	case reflect.Interface, reflect.Pointer:
		if v.IsNil() {
			return path
		}
		return zeroField(v.Elem(), path)
	case reflect.Slice:
		if v.Len() == 0 {
			return path
		}
		return zeroField(v.Index(0), path+"[0]")
	}
	if v.IsZero() {
		return path
	}
	return ""
}

func source(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }
