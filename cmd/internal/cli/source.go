package cli

import (
	"net"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// DefaultPort is the main port of a server.
const DefaultPort = "7400"

// Source is [NAME=]HOST[:PORT]:/EXPORT[/PATH] as somebody typed it. A moment at
// its end is still part of Path, or of Export where there is no path.
type Source struct {
	Name   string // "" if none was given
	Host   string // without brackets
	Port   string
	Export string
	Path   string // below the export, clean, "" for its root
}

var sourceName = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9._-]*)=`)

// IsSource reports whether an argument can only be meant as a source: a colon
// stands before its first slash, and a slash follows the colon.
func IsSource(s string) bool {
	head, _, ok := strings.Cut(s, "/")
	return ok && strings.HasSuffix(head, ":")
}

// ParseSource reads a source; the error is a usage error.
func ParseSource(s string) (Source, error) {
	src := Source{Port: DefaultPort}
	rest := s
	if m := sourceName.FindStringSubmatch(s); m != nil {
		src.Name, rest = m[1], s[len(m[0]):]
	}
	at := strings.Index(rest, ":/")
	if at < 0 {
		return Source{}, Usage("%s: not a source: use HOST[:PORT]:/EXPORT[/PATH]", s)
	}
	host, below := rest[:at], rest[at+2:]
	if inner, ok := strings.CutPrefix(host, "["); ok {
		h, port, ok := strings.Cut(inner, "]")
		if !ok || net.ParseIP(h) == nil {
			return Source{}, Usage("%s: %s is no IPv6 address", s, host)
		}
		src.Host, host = h, port
		if port != "" && !strings.HasPrefix(port, ":") {
			return Source{}, Usage("%s: a port after [ADDRESS] begins with a colon", s)
		}
	} else if i := strings.IndexByte(host, ':'); i >= 0 {
		src.Host, host = host[:i], host[i:]
	} else {
		src.Host, host = host, ""
	}
	if port, ok := strings.CutPrefix(host, ":"); ok {
		if strings.Contains(port, ":") {
			return Source{}, Usage("%s: write an IPv6 address as [ADDRESS]", s)
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return Source{}, Usage("%s: %q is no port", s, port)
		}
		src.Port = port
	}
	if src.Host == "" || strings.ContainsAny(src.Host, " /@") {
		return Source{}, Usage("%s: %q is no host", s, src.Host)
	}
	src.Export, src.Path, _ = strings.Cut(below, "/")
	src.Path = strings.TrimPrefix(path.Clean("/"+src.Path), "/")
	if src.Export == "" || src.Export == "." || src.Export == ".." {
		return Source{}, Usage("%s: the name of an export is missing: use HOST[:PORT]:/EXPORT[/PATH]", s)
	}
	return src, nil
}

// Addr is the address of the main port.
func (s Source) Addr() string { return net.JoinHostPort(s.Host, s.Port) }

// Typed is the source as it can be typed again, with its port if that is not the usual one.
func (s Source) Typed() string {
	if s.Port == DefaultPort {
		return s.String()
	}
	bare := s
	bare.Export, bare.Path = "", ""
	return strings.TrimSuffix(bare.String(), ":/") + ":" + s.Port + ":" + path.Join("/", s.Export, s.Path)
}

// String is HOST:/EXPORT[/PATH], the name under which a mount is listed.
func (s Source) String() string {
	host := s.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + path.Join("/", s.Export, s.Path)
}
