// Package record is what one change looks like in a journal: the record with
// its fields, the frame that holds a batch of records in a log file, and the
// block that a log file begins with. Pure bytes: no files, no goroutines.
//
// The numbers here (magics, offsets, tags, kinds, flags) never change. A new
// tag, kind or flag is a new format version, which an older program refuses by
// name. All integers are little endian. "uvarint" is the varint of
// encoding/binary in its shortest form, "zigzag" a uvarint of (n<<1)^(n>>63).
// CRC is CRC-32C. Everything is checked against a limit before it is allocated.
//
// # Segment
//
// A log file is a header block, then frames without gaps, then zeros. It was
// written once with zeros to its whole size before it got its name.
//
//	   0  [8]  "cagewal\n"
//	   8  u32  CRC of bytes 12 to 4096
//	  12  u16  format version                 offsets 0 to 16 hold for ever
//	  14  u16  zero
//	  16  u64  segment id, random: frames of another life of the blocks fail
//	  24  u64  LSN of the first record; all before it were durable
//	  32  u64  bytes of the file
//	  40  i64  time of the record before the first
//	  48 [16]  skeleton chain before the first frame
//	  64 [16]  image chain before the first frame
//	  80       zeros
//	4096
//
// # Frame
//
// A frame is a header, a section of skeletons and a section of images. It lies
// at a multiple of 8 and never spans segments.
//
//	 0  u32  magic "Cagf"
//	 4  u32  CRC of bytes 8 to the end of the skeleton section
//	 8  u16  format version
//	10  u16  bytes of this header: 96
//	12  u32  bytes of the skeleton section, padded with zeros to 8
//	16  u32  bytes of the image section, padded with zeros to 8
//	20  u16  flags: 1 end of segment, 2 closed in order
//	22  u16  zero                           offsets 0 to 20 hold for ever
//	24  u64  segment id
//	32  u64  LSN of the first record; in a mark that of the next record
//	40  u64  synced: all LSN <= this were durable when the frame was built
//	48  i64  time of the first record; in a mark that of the record before
//	56  u32  number of records; 0 in a mark, which has a flag instead
//	60  u32  zero
//	64 [16]  image chain: SHA-256(image chain before || image section)[:16],
//	         or the image chain before where the section is empty
//	80 [16]  skeleton chain: SHA-256(skeleton chain before || bytes 8 to 80
//	         || skeleton section)[:16]
//	96       skeleton section, then image section
//
// The skeleton chain runs over the image chains, not over the images: when
// images are thrown away it can still be recomputed, and the images that are
// left can each be checked with the heads in the headers.
//
// The skeleton section is, for each record:
//
//	uvarint  bytes after this field
//	uvarint  time less the time of the record before; 0 in the first one
//	         the skeleton
//
// LSNs are dense: the n-th record has the frame's first LSN + n. The image
// section is the records' images one after another.
//
// # Skeleton
//
// A sequence of fields with ascending tags; a field that is zero is left out.
//
//	tag u8   then, by the field's form:
//	num      uvarint, not 0
//	fix      8 bytes (Session) or 4 bytes (ImageSum), not 0
//	lsn      zigzag of the record's LSN - the value, which is not 0
//	time     zigzag of the value, which is not 0, - the record's time
//	str      uvarint length, not 0, and that many bytes
//	set      nothing: the tag says true
//	pieces   see below
//
//	 1 num  Kind            17 num  Victim          33 num  Rdev
//	 2 num  Flag            18 lsn  Grave           34 str  Target
//	 3 fix  Session         19 num  Inode.Ino       35 num  Off
//	 4 num  Seq             20 time Inode.Btime     36 num  Len
//	 5 num  Client          21 time OldMtime        37 num  OldSize
//	 6 num  UID             22 time OldNewMtime     38 num  NewSize
//	 7 num  GID             23 num  Old.Mode        39 pieces Pieces
//	 8 num  PID             24 num  Old.UID         40 set  HasOld
//	 9 num  PGID            25 num  Old.GID         41 str  OldValue
//	10 str  Comm            26 time Old.Atime       42 set  HasNew
//	11 lsn  Txn             27 time Old.Mtime       43 str  Value
//	12 num  ID              28 num  New.Mode        44 lsn  Upto
//	13 num  Dir             29 num  New.UID         45 num  Count
//	14 str  Name            30 num  New.GID         46 num  Status
//	15 num  NewDir          31 time New.Atime       47 num  ImageLen
//	16 str  NewName         32 time New.Mtime       48 fix  ImageSum
//
// Pieces are a uvarint count, not 0, and for each piece:
//
//	u8       kind
//	uvarint  offset less the end of the piece before (of the first: less Off)
//	uvarint  length
//	uvarint  number of checksums and that many u32; PieceBlocks only
package record
