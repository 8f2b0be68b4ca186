package wire

import (
	"math"
	"strings"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// CheckOp refuses operations that are wrong whatever the export holds, so that
// client and server refuse the same ones in the same way. It does not look at
// what needs state: existence, permission, hidden names. Errors: status.Invalid,
// NameTooLong, TooLarge, TooBig, Range.
func CheckOp(op proto.Op) error {
	switch op := op.(type) {
	case *proto.Make:
		return checkMake(op)
	case *proto.Link:
		return first("link", checkID(op.ID), checkID(op.Dir), CheckName(op.Name))
	case *proto.Remove:
		return first("remove", checkID(op.Dir), CheckName(op.Name))
	case *proto.Rename:
		err := first("rename", checkID(op.Dir), CheckName(op.Name), checkID(op.NewDir), CheckName(op.NewName))
		if err == nil && op.Flags != 0 && op.Flags != proto.RenameNoReplace && op.Flags != proto.RenameExchange {
			err = invalid("rename", op.Name, "flags %#x", op.Flags)
		}
		return err
	case *proto.SetAttr:
		return checkSetAttr(op)
	case *proto.SetXattr:
		return checkSetXattr(op)
	case *proto.RemoveXattr:
		return first("removexattr", checkID(op.ID), checkXattrName(op.Name))
	case *proto.Write:
		return checkWrite(op)
	case *proto.Sync:
		if op.All && op.ID != proto.RootID {
			return invalid("sync", op.ID.String(), "everything is synced at the root only")
		}
		return first("sync", checkID(op.ID))
	case *proto.Label:
		if !proto.ValidLabel(op.Name) {
			return invalid("label", op.Name, "a label is 1 to %d characters of A-Z a-z 0-9 . _ -", proto.MaxLabel)
		}
		return nil
	case *proto.Rollback:
		return checkRollback(op)
	case *proto.Undo:
		if len(op.LSNs) > MaxEntries {
			return invalid("undo", "", "%d records named, at most %d allowed", len(op.LSNs), MaxEntries)
		}
		return first("undo", CheckPath(op.Path))
	case *proto.Allocate:
		return checkAllocate(op)
	case *proto.Copy:
		return checkCopy(op)
	case *proto.Branch:
		if op.Session == 0 {
			return invalid("branch", "", "no branch named")
		}
		return nil
	default:
		return status.Newf(status.Unsupported, "change", "", "operation %T", op)
	}
}

// CheckName refuses what cannot be the name of a file in a directory:
// status.Invalid or NameTooLong.
func CheckName(name string) error {
	switch {
	case name == "", name == ".", name == "..":
		return status.Newf(status.Invalid, "name", quote(name), "not a name")
	case len(name) > proto.MaxName:
		return status.New(status.NameTooLong, "name", quote(name))
	case strings.ContainsAny(name, "/\x00"):
		return status.Newf(status.Invalid, "name", quote(name), "a name holds no '/' and no zero byte")
	}
	return nil
}

// CheckPath refuses what is not a clean path below an export: "" and "." are
// its root. status.Invalid or NameTooLong.
func CheckPath(path string) error {
	if path == "" || path == "." {
		return nil
	}
	if len(path) > proto.MaxPath {
		return status.New(status.NameTooLong, "path", quote(path))
	}
	for name := range strings.SplitSeq(path, "/") {
		if err := CheckName(name); err != nil {
			return status.Wrap(err, "path", quote(path))
		}
	}
	return nil
}

func checkMake(op *proto.Make) error {
	err := checkID(op.Dir)
	if err == nil && (op.Name != "" || op.Mode&proto.ModeType != proto.ModeRegular) { // a regular file may be without a name
		err = CheckName(op.Name)
	}
	if err := first("make", err); err != nil {
		return err
	}
	if op.Umask&^0o777 != 0 {
		return invalid("make", op.Name, "umask %#o", op.Umask)
	}
	if op.Mode&^(proto.ModeType|proto.ModePerm) != 0 {
		return invalid("make", op.Name, "mode %#o", op.Mode)
	}
	if op.Propose > proto.MaxFileID {
		return invalid("make", op.Name, "proposed number %d", uint64(op.Propose))
	}
	switch op.Mode & proto.ModeType {
	case proto.ModeSymlink:
		switch {
		case op.Target == "" || strings.Contains(op.Target, "\x00"):
			return invalid("make", op.Name, "target of the symlink")
		case len(op.Target) > proto.MaxTarget:
			return status.Newf(status.NameTooLong, "make", op.Name, "target of the symlink too long")
		}
		return nil
	case proto.ModeRegular, proto.ModeDir, proto.ModeFIFO, proto.ModeSocket, proto.ModeChar, proto.ModeBlock:
		if op.Target != "" {
			return invalid("make", op.Name, "only symlinks have a target")
		}
		return nil
	}
	return invalid("make", op.Name, "file type %#o", op.Mode&proto.ModeType)
}

func checkSetAttr(op *proto.SetAttr) error {
	const known = proto.SetMtimeNow<<1 - 1
	object := op.ID.String()
	switch {
	case op.Mask&^known != 0:
		return invalid("setattr", object, "mask %#x", op.Mask)
	case op.Mask&proto.SetMode != 0 && op.Mode&^proto.ModePerm != 0:
		return invalid("setattr", object, "mode %#o", op.Mode)
	case op.Mask&proto.SetSize != 0 && op.Size > math.MaxInt64:
		return status.New(status.TooLarge, "setattr", object)
	case op.Mask&proto.SetAtime != 0 && op.Mask&proto.SetAtimeNow != 0,
		op.Mask&proto.SetMtime != 0 && op.Mask&proto.SetMtimeNow != 0:
		return invalid("setattr", object, "a time both given and the present")
	}
	return first("setattr", checkID(op.ID))
}

func checkSetXattr(op *proto.SetXattr) error {
	switch {
	case op.Flags&^(proto.XattrCreate|proto.XattrReplace) != 0:
		return invalid("setxattr", quote(op.Name), "flags %#x", op.Flags)
	case len(op.Value) > proto.MaxXattr:
		return status.New(status.TooBig, "setxattr", quote(op.Name))
	}
	return first("setxattr", checkID(op.ID), checkXattrName(op.Name))
}

func checkWrite(op *proto.Write) error {
	switch {
	case len(op.Data) > proto.MaxIO:
		return invalid("write", op.ID.String(), "%d bytes, at most %d allowed", len(op.Data), proto.MaxIO)
	case op.Off > math.MaxInt64-uint64(len(op.Data)):
		return status.New(status.TooLarge, "write", op.ID.String())
	}
	return first("write", checkID(op.ID))
}

// checkAllocate has fallocate(2)'s errors.
func checkAllocate(op *proto.Allocate) error {
	object := op.ID.String()
	switch op.Mode {
	case 0, proto.AllocKeepSize, proto.AllocPunchHole | proto.AllocKeepSize, proto.AllocZeroRange, proto.AllocZeroRange | proto.AllocKeepSize:
	default:
		return status.Newf(status.Unsupported, "allocate", object, "mode %#x", op.Mode)
	}
	switch {
	case op.Len == 0 || op.Off > math.MaxInt64 || op.Len > math.MaxInt64:
		return invalid("allocate", object, "%d bytes at %d", op.Len, op.Off)
	case op.Len > math.MaxInt64-op.Off:
		return status.New(status.TooLarge, "allocate", object)
	}
	return first("allocate", checkID(op.ID))
}

func checkCopy(op *proto.Copy) error {
	switch {
	case op.Len > proto.MaxIO:
		return invalid("copy", op.ID.String(), "%d bytes, at most %d allowed", op.Len, proto.MaxIO)
	case op.Off > math.MaxInt64-uint64(op.Len), op.SrcOff > math.MaxInt64-uint64(op.Len):
		return status.New(status.TooLarge, "copy", op.ID.String())
	case op.ID == op.Src && op.Off < op.SrcOff+uint64(op.Len) && op.SrcOff < op.Off+uint64(op.Len):
		return invalid("copy", op.ID.String(), "the ranges overlap")
	}
	return first("copy", checkID(op.ID), checkID(op.Src))
}

func checkRollback(op *proto.Rollback) error {
	switch {
	case len(op.Paths) == 0:
		return invalid("rollback", "", "no path named")
	case len(op.Paths) > MaxEntries:
		return invalid("rollback", "", "%d paths named, at most %d allowed", len(op.Paths), MaxEntries)
	case op.New > proto.NewKeep:
		return invalid("rollback", "", "newer files: %d", op.New)
	}
	total := 0
	for _, p := range op.Paths {
		if err := CheckPath(p); err != nil {
			return status.Wrap(err, "rollback", "")
		}
		total += len(p)
	}
	if total > MaxList/2 {
		return status.Newf(status.TooBig, "rollback", "", "%d bytes of paths", total)
	}
	return nil
}

func checkID(id proto.FileID) error {
	if id == 0 || id > proto.MaxFileID {
		return status.Newf(status.Invalid, "", id.String(), "no number of a file")
	}
	return nil
}

// checkXattrName has setxattr(2)'s error for a name that is empty or too long.
func checkXattrName(name string) error {
	switch {
	case name == "" || len(name) > proto.MaxName:
		return status.Newf(status.Range, "attribute", quote(name), "length of the name")
	case strings.Contains(name, "\x00"):
		return status.Newf(status.Invalid, "attribute", quote(name), "zero byte in the name")
	}
	return nil
}

// first is the first error, with the operation in front of it.
func first(op string, errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return status.Wrap(err, op, "")
		}
	}
	return nil
}

func invalid(op, object, format string, args ...any) error {
	return status.Newf(status.Invalid, op, object, format, args...)
}

// quote is a name in an error text, shortened.
func quote(name string) string {
	const most = 64
	if len(name) > most {
		name = name[:most] + "…"
	}
	return strings.ToValidUTF8(strings.ReplaceAll(name, "\x00", `\0`), "?")
}
