package proto

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// berlin is a zone of its own, so that the tests do not hang on the machine's.
var berlin = time.FixedZone("CET", 3600)

// present is "now" in all of these tests.
var present = time.Date(2026, 11, 21, 14, 2, 3, 500, berlin)

func at(t time.Time) Moment { return Moment{Kind: MomentTime, Time: Time(t.UnixNano())} }

func TestParseMoment(t *testing.T) {
	day := func(day, h, m, s, ns int) Moment {
		return at(time.Date(2026, 11, day, h, m, s, ns, berlin))
	}
	for s, want := range map[string]Moment{
		"now":                            {Kind: MomentNow},
		"1":                              {Kind: MomentLSN, LSN: 1},
		"2026":                           {Kind: MomentLSN, LSN: 2026},
		"18446744073709551615":           {Kind: MomentLSN, LSN: math.MaxUint64},
		"label:v1.0_rc-2":                {Kind: MomentLabel, Label: "v1.0_rc-2"},
		"label:now":                      {Kind: MomentLabel, Label: "now"},
		"2026-11-21T14:02:03.5+01:00":    day(21, 14, 2, 3, 5e8),
		"2026-11-21T14:02:03Z":           at(time.Date(2026, 11, 21, 14, 2, 3, 0, time.UTC)),
		"2026-11-21T14:02Z":              at(time.Date(2026, 11, 21, 14, 2, 0, 0, time.UTC)),
		"2026-11-21T14:02:03.123456789":  day(21, 14, 2, 3, 123456789),
		"2026-11-21T14:02:03":            day(21, 14, 2, 3, 0),
		"2026-11-21T14:02":               day(21, 14, 2, 0, 0),
		"2026-11-21 14:02":               day(21, 14, 2, 0, 0),
		"2026-11-21 14:02:03.25-05:00":   at(time.Date(2026, 11, 21, 14, 2, 3, 25e7, time.FixedZone("", -5*3600))),
		"2026-11-20":                     day(20, 0, 0, 0, 0),
		"2099-01-01T00:00":               at(time.Date(2099, 1, 1, 0, 0, 0, 0, berlin)),
		"14:02":                          day(21, 14, 2, 0, 0),
		"14:02:03":                       day(21, 14, 2, 3, 0),
		"14:02:04":                       day(20, 14, 2, 4, 0),
		"23:59":                          day(20, 23, 59, 0, 0),
		"00:00":                          day(21, 0, 0, 0, 0),
		"-5m":                            at(present.Add(-5 * time.Minute)),
		"-1h30m":                         at(present.Add(-90 * time.Minute)),
		"-2d":                            at(present.Add(-48 * time.Hour)),
		"-1w2d3h4m5s6ms7us8ns":           at(present.Add(-(9*24*time.Hour + 3*time.Hour + 4*time.Minute + 5*time.Second + 6007008))),
		"-0s":                            at(present),
		"2026-11-21T14:02:03.000000000Z": at(time.Date(2026, 11, 21, 14, 2, 3, 0, time.UTC)),
	} {
		for _, form := range []string{s, "@" + s} {
			t.Run(form, func(t *testing.T) {
				got, err := ParseMoment(form, present)
				require.NoError(t, err)
				require.Equal(t, want, got)
			})
		}
	}
}

func TestParseMomentRefuses(t *testing.T) {
	for _, s := range []string{
		"", "@", "@@1", "0", "00", "18446744073709551616", "+1", " 1", "1 ", "1.5", "0x10", "١",
		"yesterday", "NOW", "label", "label:", "label:a b", "label:a/b", "label:é", "label:" + strings.Repeat("x", MaxLabel+1),
		"-", "-5", "-m", "-5x", "-5m3", "--5m", "-1.5h", "- 5m", "-5M", "5m", "-99999999999d", "-9223372036854775807ns1ns",
		"24:00", "14:60", "14:2:3:4", "14:02 ", "2026-13-01", "2026-02-30", "2026-11-21T", "2026-11-21T25:00",
		"2026-11-21T14", "2026-11-21X14:02", "26-11-21", "2026-11-21T14:02+1", "1500-01-01", "3000-01-01T00:00",
		"example.com", "host", "1/2",
	} {
		t.Run(s, func(t *testing.T) {
			_, err := ParseMoment(s, present)
			require.Error(t, err)
			require.Contains(t, err.Error(), "moment ")
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestClockIsNeverToCome(t *testing.T) {
	// Around midnight, on the first of a month, and where clocks change.
	newYork, err := time.LoadLocation("America/New_York")
	if err != nil {
		t.Skip("no time zones here")
	}
	for _, now := range []time.Time{
		time.Date(2026, 1, 1, 0, 0, 0, 0, berlin),
		time.Date(2026, 3, 1, 0, 0, 1, 0, berlin),
		time.Date(2026, 3, 8, 3, 0, 0, 0, newYork),
		time.Date(2026, 11, 1, 1, 30, 0, 0, newYork),
	} {
		for _, clock := range []string{"00:00", "00:00:01", "02:30", "12:00", "23:59:59"} {
			m, err := ParseMoment(clock, now)
			require.NoError(t, err)
			d := now.Sub(m.Time.Std())
			require.True(t, 0 <= d && d < 26*time.Hour, "%s at %s is %s ago", clock, now, d)
		}
	}
}

func TestSplitMoment(t *testing.T) {
	for s, want := range map[string]struct {
		path   string
		moment Moment
		ok     bool
	}{
		"a/b@12":             {"a/b", Moment{Kind: MomentLSN, LSN: 12}, true},
		"a@b@12":             {"a@b", Moment{Kind: MomentLSN, LSN: 12}, true},
		"@label:x":           {"", Moment{Kind: MomentLabel, Label: "x"}, true},
		"dir/@-5m":           {"dir/", at(present.Add(-5 * time.Minute)), true},
		"a@2026-11-21 14:02": {"a", at(time.Date(2026, 11, 21, 14, 2, 0, 0, berlin)), true},
		"a@@12":              {"a@", Moment{Kind: MomentLSN, LSN: 12}, true},
		"a@now":              {"a", Moment{Kind: MomentNow}, true},
		"plain":              {"plain", Moment{}, false},
		"":                   {"", Moment{}, false},
		"a@":                 {"a@", Moment{}, false},
		"a@12/b":             {"a@12/b", Moment{}, false},
		"user@host":          {"user@host", Moment{}, false},
		"icon@2x.png":        {"icon@2x.png", Moment{}, false},
		"a@12@b":             {"a@12@b", Moment{}, false},
	} {
		t.Run(s, func(t *testing.T) {
			path, m, ok := SplitMoment(s, present)
			require.Equal(t, want.ok, ok)
			require.Equal(t, want.path, path)
			require.Equal(t, want.moment, m)
		})
	}
}

func TestMomentString(t *testing.T) {
	for _, m := range []Moment{
		{Kind: MomentNow},
		{Kind: MomentLSN, LSN: 77},
		{Kind: MomentLabel, Label: "before-upgrade"},
		{Kind: MomentTime, Time: Time(present.UnixNano())},
		{Kind: MomentTime, Time: 1},
	} {
		got, err := ParseMoment(m.String(), present)
		require.NoError(t, err, m.String())
		require.Equal(t, m, got, m.String())
	}
	require.Equal(t, "moment of kind 9", Moment{Kind: 9}.String())
}

func TestValidLabel(t *testing.T) {
	require.True(t, ValidLabel("azAZ09._-"))
	require.True(t, ValidLabel(strings.Repeat("x", MaxLabel)))
	for _, s := range []string{"", strings.Repeat("x", MaxLabel+1), "a b", "a@b", "a:b", "ä", "a\n"} {
		require.False(t, ValidLabel(s), "%q", s)
	}
}

func FuzzParseMoment(f *testing.F) {
	for _, s := range []string{"now", "@12", "2026-11-21T14:02:03.5+01:00", "2026-11-21 14:02", "14:02", "-1h30m", "-2d", "label:x", "x@5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMoment(s, present)
		if err != nil {
			return
		}
		again, err := ParseMoment(m.String(), present)
		require.NoError(t, err, "%q means %q", s, m)
		require.Equal(t, m, again, "%q means %q", s, m)
		path, split, ok := SplitMoment("p@"+strings.TrimPrefix(s, "@"), present)
		require.True(t, ok)
		require.Equal(t, "p", path)
		require.Equal(t, m, split)
	})
}
