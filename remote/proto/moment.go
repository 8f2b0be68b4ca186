package proto

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// MomentKind is the form in which a moment was given.
type MomentKind uint8

// Forms of moments.
const (
	MomentNow MomentKind = iota
	MomentLSN
	MomentTime  // the last record not after Time
	MomentLabel // the label's record
)

// Moment is a point of an export's history as somebody named it. The server
// turns it into an LSN; a moment includes that record.
type Moment struct {
	Kind  MomentKind
	LSN   LSN
	Time  Time
	Label string
}

// String is a form that ParseMoment understands, without '@': the full time in
// the local zone, the LSN, label:NAME or now.
func (m Moment) String() string {
	switch m.Kind {
	case MomentNow:
		return "now"
	case MomentLSN:
		return strconv.FormatUint(uint64(m.LSN), 10)
	case MomentTime:
		return m.Time.String()
	case MomentLabel:
		return labelPrefix + m.Label
	}
	return fmt.Sprintf("moment of kind %d", m.Kind)
}

const labelPrefix = "label:"

// ValidLabel reports whether a label may have this name: [A-Za-z0-9._-]+, at
// most MaxLabel bytes.
func ValidLabel(name string) bool {
	for _, c := range []byte(name) {
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return name != "" && len(name) <= MaxLabel
}

// ParseMoment reads a moment, with or without a leading '@':
//
//	12345                          an LSN
//	2026-11-21T14:02:03.5+01:00    a time; zone, fraction and seconds may be
//	2026-11-21 14:02               missing, a space may stand for the T
//	2026-11-21                     the day's beginning
//	14:02, 14:02:03                today, or yesterday where that is to come
//	-5m, -1h30m, -2d               so long before now: units w d h m s ms us ns
//	label:NAME                     the moment that was given the name
//	now
//
// Times without a zone are in now's location. Whether the moment is in the
// future or unknown to the export is not checked here.
func ParseMoment(s string, now time.Time) (Moment, error) {
	text := strings.TrimPrefix(s, "@")
	if label, ok := strings.CutPrefix(text, labelPrefix); ok {
		if !ValidLabel(label) {
			return Moment{}, fmt.Errorf("moment %q: a label is 1 to %d characters of A-Z a-z 0-9 . _ -", s, MaxLabel)
		}
		return Moment{Kind: MomentLabel, Label: label}, nil
	}
	if text == "now" {
		return Moment{Kind: MomentNow}, nil
	}
	if isDigits(text) {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil || n == 0 {
			return Moment{}, fmt.Errorf("moment %q: not the number of a record", s)
		}
		return Moment{Kind: MomentLSN, LSN: LSN(n)}, nil
	}
	t, err := parseTime(text, now)
	if err != nil {
		return Moment{}, fmt.Errorf("moment %q: %w", s, err)
	}
	return Moment{Kind: MomentTime, Time: t}, nil
}

// SplitMoment takes PATH@MOMENT apart. The last '@' counts only if what follows
// it is a moment; otherwise ok is false and path is all of s. Before it calls
// this the caller checks that there is no file of that whole name.
func SplitMoment(s string, now time.Time) (path string, m Moment, ok bool) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return s, Moment{}, false
	}
	m, err := ParseMoment(s[i+1:], now)
	if err != nil {
		return s, Moment{}, false
	}
	return s[:i], m, true
}

var errForm = errors.New("not a record number, time, duration before now, label:NAME or now")

func parseTime(text string, now time.Time) (Time, error) {
	if rest, ok := strings.CutPrefix(text, "-"); ok {
		d, err := parseDuration(rest)
		if err != nil {
			return 0, err
		}
		return nanos(now.Add(-d))
	}
	if t, ok := parseClock(text, now); ok {
		return nanos(t)
	}
	t, ok := parseDate(text, now.Location())
	if !ok {
		return 0, errForm
	}
	return nanos(t)
}

// parseClock reads a time of day: the last one that is not to come.
func parseClock(text string, now time.Time) (time.Time, bool) {
	for _, layout := range []string{"15:04", "15:04:05"} {
		c, err := time.Parse(layout, text)
		if err != nil {
			continue
		}
		h, m, s := c.Clock()
		t := time.Date(now.Year(), now.Month(), now.Day(), h, m, s, c.Nanosecond(), now.Location())
		if t.After(now) {
			t = time.Date(now.Year(), now.Month(), now.Day()-1, h, m, s, c.Nanosecond(), now.Location())
		}
		return t, true
	}
	return time.Time{}, false
}

// parseDate reads RFC 3339 with parts left out. Go's parser takes a fraction
// behind the seconds of any layout.
func parseDate(text string, zone *time.Location) (time.Time, bool) {
	if len(text) > 10 && text[10] == ' ' {
		text = text[:10] + "T" + text[11:]
	}
	for _, layout := range []string{
		"2006-01-02T15:04:05Z07:00", "2006-01-02T15:04Z07:00",
		"2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02",
	} {
		if t, err := time.ParseInLocation(layout, text, zone); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

var units = map[string]time.Duration{
	"ns": 1, "us": time.Microsecond, "ms": time.Millisecond, "s": time.Second,
	"m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour,
}

// parseDuration reads whole numbers with units, such as 1h30m or 2d. A day has
// 24 hours.
func parseDuration(text string) (time.Duration, error) {
	if text == "" {
		return 0, errForm
	}
	var sum time.Duration
	for text != "" {
		digits := prefixLen(text, isDigit)
		letters := prefixLen(text[digits:], isLower)
		n, err := strconv.ParseInt(text[:digits], 10, 64)
		unit, ok := units[text[digits:digits+letters]]
		if err != nil || !ok {
			return 0, errForm
		}
		if n > (math.MaxInt64-int64(sum))/int64(unit) {
			return 0, errors.New("duration too long")
		}
		sum += time.Duration(n) * unit
		text = text[digits+letters:]
	}
	return sum, nil
}

// nanos refuses times that Time cannot hold.
func nanos(t time.Time) (Time, error) {
	if t.Before(time.Unix(0, math.MinInt64)) || t.After(time.Unix(0, math.MaxInt64)) {
		return 0, errors.New("time out of range")
	}
	return Time(t.UnixNano()), nil
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
func isLower(c byte) bool { return 'a' <= c && c <= 'z' }

func isDigits(s string) bool { return s != "" && prefixLen(s, isDigit) == len(s) }

func prefixLen(s string, in func(byte) bool) int {
	n := 0
	for n < len(s) && in(s[n]) {
		n++
	}
	return n
}
