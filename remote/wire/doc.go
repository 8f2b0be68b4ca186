// Package wire is the protocol between a client and a server: every message,
// its bytes and its limits. It is pure: bytes in, bytes out. It owns no
// connection and no goroutine, and it knows nothing of caches or journals.
//
// This text is the specification, version 6.
//
// # Connections
//
// A client opens one main connection (TCP, TLS 1.3 with keys on both sides, see
// remote/auth) for a session, and may open data connections to the ports main+1
// to main+DataPorts. Both kinds speak the same frames. Changes and pushes use
// the main connection only; the Table says which requests a data connection
// takes.
//
// # Preamble
//
// First of all each side sends 8 bytes, the server first:
//
//	 0       1       2       3       4       5       6       7
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|  'C'     'A'     'G'     'E'  |    version    |   reserved 0  |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//
// The server names the newest version that it speaks, the client the one that
// it is going to speak. The client waits for the server's: with TLS 1.3 a client
// learns only from its first read that its key was refused, and must not have
// sent anything that could make the server's reset overtake that. A client that
// speaks only newer versions than the server names its own all the same, and is
// refused on both sides with status.Version, "server speaks 1, client 2". Whether
// an older client is still served the server says in the reply to its hello.
// Reserved bytes are sent as zero and ignored. The preamble, the frame header,
// and the first two fields of the hello and of the join (version, software) are
// the same in every version.
//
//	version 1   first version
//	version 2   allocate, copy and seek; make without a name and with a umask;
//	            write with append; N in results
//	version 3   locks
//	version 4   history onward from a record
//	version 5   leases
//	version 6   branches
//	version 7   open modes
//
// # Frames
//
// After the preamble both directions are sequences of frames: a header of 16
// bytes, little endian, and a payload.
//
//	 0       1       2       3       4       5       6       7
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|  length of the payload u32    |  opcode u16   |   flags u16   |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	|                        request id u64                         |
//	+-------+-------+-------+-------+-------+-------+-------+-------+
//	 8       9       10      11      12      13      14      15
//
// flags: 1 reply, 2 error (with 1: the payload is an ErrorRep), 4 push. No flag
// means a request. Other bits and combinations are refused.
//
// The sender of a request chooses its id: not 0, and not that of a request
// still unanswered on this connection. A reply has the id and opcode of its
// request; replies come in any order. A push has id 0 and no reply. A client's
// frames are requests, a server's are replies and pushes.
//
// # Errors
//
// A wrong preamble or header ends the connection: no later byte can be
// trusted to begin a frame. A payload that cannot be decoded is answered with
// status.BadFrame, an unknown opcode with status.Unsupported, and the
// connection goes on. A client ignores pushes that it does not know.
//
// # Encodings
//
//	integer   base-128 varint, 7 bits a byte, low ones first, at most 64 bits;
//	          above the largest value of the field's type it is an error
//	time      nanoseconds since 1970 UTC, zigzag varint
//	flag      integer 0 or 1
//	session   8 bytes, little endian
//	string    integer length, then the bytes; names are bytes, not UTF-8
//	list      integer count, then the elements
//	cut list  count as u32, little endian, then the elements: as many as fit
//
// Fields are encoded in the order of the Go struct, structs within structs
// likewise, an embedded ReqHeader first. A decoder ignores bytes behind the last
// field that it knows: a later version appends fields, and a field that is
// missing because the sender is older is an error only in the same version.
// An enumeration's unknown values are errors.
//
// The operation of a ChangeReq has no mark of its kind: the opcode is OpChange
// plus the proto.OpKind. The data of a ReadRep and of a Write are at the end of
// their payloads, so that they can be sent from where they are.
//
// # Limits
//
// Every length is checked against its limit before anything is allocated, and
// lists also against the bytes that are there.
//
//	payload                    MaxFrame    1 MiB + 64 KiB
//	data of a read or write    MaxIO       1 MiB
//	name                       MaxName     255
//	symlink's target           MaxTarget   4095
//	path                       MaxPath     64 KiB
//	groups of an identity      MaxGroups   1024
//	command name               MaxComm     64     (longer ones are shortened)
//	attribute's value, names   MaxXattr    64 KiB
//	label                      MaxLabel    128
//	host, export, software     MaxWord     255    (shortened, but the export)
//	secret of a join           MaxSecret   64
//	text for people            MaxText     4096   (shortened)
//	list                       MaxEntries  1024
//	opens of a hello           MaxOpens    65536
//	locks of a session         MaxLocks    8192
//	claims of a hello          MaxClaims   65536
//	leases wanted at once      MaxWants    1024
//	leases that a change needs MaxNeeds    16
//	cut list                   MaxList     1 MiB
//
// # Flow
//
//	client                                server
//	                                <--   preamble
//	preamble                        -->
//	OpHello                         -->            main: new or resumed session
//	                                <--   reply    session, root, data ports
//	    preamble, OpAttach          -->            each data connection
//	                                <--   reply
//	requests, OpChange+kind …       -->            steady state
//	                                <--   replies, OpChanged, OpRecall, OpLockDone
//	OpPing when idle                -->
//	                                <--   reply
//	                                <--   OpDrain  the server is stopping: the
//	                                               client finishes and reconnects
//	OpBye                           -->            ends the session and its opens
//	                                <--   reply, then the server closes
//
// A client whose key the server does not admit yet joins on a connection of its
// own, which is told apart in the TLS handshake (ALPN "cage-join"): there the
// first and only frame is OpJoin, after whose reply the server closes. On other
// connections OpJoin is refused, and the handshake of a key that is not admitted
// fails.
//
// The first frame of any other connection is OpHello or OpAttach, and neither comes
// again. OpExports, OpPing and OpBye are all that a hello without an export allows.
// Preamble and first frame are under a deadline on both sides; afterwards a side
// that heard nothing for a while pings or gives up. A client that has nothing to
// ask pings also while it is told things, so that the server hears it.
//
// A session outlives its connections. A client that comes again sends its
// session, the server start it saw last, the first sequence number it has no
// result of, and the files it holds open; Resumed in the reply says whether the
// session goes on. Changes are sent again from the first without a result, in
// order, under the same numbers: the server answers a repeated one with the
// result of the first time. Reads are simply asked again. Pushes may have been
// missed, so nothing cached counts as valid before it was asked for again.
//
// Changes of a session are sent in the order of their sequence numbers, without
// gaps, and the server takes them in that order. Acked in a change tells up to
// which number the client has all results, so that the server can forget them.
//
// # Opcodes
//
// The constants in opcode.go, with the payloads beside them; Table ties them to
// their types. Numbers are never used again.
package wire
