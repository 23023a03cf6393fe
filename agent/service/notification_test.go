package service

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestParseNotification(t *testing.T) {
	for message, want := range map[string]Notification{
		"":                                   {},
		"READY=1":                            {Ready: true},
		"READY=1\n":                          {Ready: true},
		"READY=0\nREADY":                     {},
		"READY=1\nSTATUS=Up = and running\n": {Ready: true, Status: "Up = and running", HasStatus: true},
		"STATUS=":                            {HasStatus: true},
		"STATUS= a\tb\x1b[31m\x00 ":          {Status: "a b [31m", HasStatus: true},
		"RELOADING=1\nMONOTONIC_USEC=12345":  {Reloading: true, Monotonic: 12345 * time.Microsecond},
		"STOPPING=1\nERRNO=2":                {Stopping: true, Errno: 2},
		"BUSERROR=org.freedesktop.DBus.Error.TimedOut":       {BusError: "org.freedesktop.DBus.Error.TimedOut"},
		"MAINPID=4711\nFDSTORE=1\nFDNAME=x\nX_OURS=whatever": {MainPID: 4711},
		"EXTEND_TIMEOUT_USEC=5000000":                        {Extend: 5 * time.Second},
		"EXTEND_TIMEOUT_USEC=18446744073709551615":           {Extend: 24 * time.Hour},
		"WATCHDOG=1": {Alive: true},
		"WATCHDOG=trigger\nWATCHDOG_USEC=20000000\nBARRIER=1":    {Trigger: true, Watchdog: 20 * time.Second},
		"STATUS=" + strings.Repeat("é", 300):                     {Status: strings.Repeat("é", 256), HasStatus: true},
		"STATUS=x" + strings.Repeat("é", 300) + "\nREADY=1\nA=B": {Status: "x" + strings.Repeat("é", 255), HasStatus: true, Ready: true},
	} {
		n, err := ParseNotification(message)
		require.NoError(t, err, message)
		require.Equal(t, want, n, "%q", message)
	}
}

func TestParseNotificationTellsWhatItCanNotRead(t *testing.T) {
	for message, says := range map[string]string{
		"MAINPID=-1":                      `MAINPID="-1": it is not a number from 1 to 4194304`,
		"MAINPID=x":                       `MAINPID="x"`,
		"ERRNO=99999":                     `ERRNO="99999": it is not a number from 1 to 4095`,
		"EXTEND_TIMEOUT_USEC=0":           "it is not a number of microseconds above 0",
		"WATCHDOG_USEC=-5":                `WATCHDOG_USEC="-5"`,
		"BUSERROR=no name":                "it is not the name of a D-Bus error",
		strings.Repeat("READY=1\n", 1000): "it has 8008 bytes; at most 4096 are read",
	} {
		n, err := ParseNotification(message + "\nREADY=1")
		require.ErrorContains(t, err, says)
		require.Equal(t, len(message) < MaxNotification, n.Ready, "the rest counts all the same: %q", message)
	}
}

// FuzzParseNotification: whatever is sent, what is taken of it can be shown and kept.
func FuzzParseNotification(f *testing.F) {
	for _, seed := range []string{"READY=1\nSTATUS=up", "WATCHDOG=trigger", "EXTEND_TIMEOUT_USEC=1\nMAINPID=1", "STATUS=\xff\x00\n\n=\n==", "BUSERROR=a.b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, message string) {
		n, err := ParseNotification(message)
		if len(message) > MaxNotification {
			require.Error(t, err)
			require.True(t, n.IsZero())
			return
		}
		require.True(t, utf8.ValidString(n.Status))
		require.LessOrEqual(t, len(n.Status), maxStatusText)
		require.NotContains(t, n.Status, "\n")
		require.GreaterOrEqual(t, n.Monotonic, time.Duration(0))
		for _, d := range []time.Duration{n.Extend, n.Watchdog} {
			require.True(t, d >= 0 && d <= maxExtend, "%v", d)
		}
		require.True(t, n.MainPID >= 0 && n.Errno >= 0)
		again, err := ParseNotification(strings.TrimSuffix(message, "\n"))
		require.Equal(t, n, again, "%v", err)
	})
}

func TestNotified(t *testing.T) {
	now := time.Unix(1000, 0)
	said := func(was Notified, message string) Notified {
		n, err := ParseNotification(message)
		require.NoError(t, err)
		return was.After(Heard{Said: n}, now)
	}
	is := said(Notified{}, "READY=1\nSTATUS=up\nMAINPID=7")
	require.Equal(t, Notified{Status: "up", MainPID: 7, At: now}, is)
	is = said(is, "RELOADING=1\nSTATUS=reading\nERRNO=5")
	require.Equal(t, Notified{Status: "reading", Reloading: true, MainPID: 7, Errno: 5, At: now}, is)
	is = said(is, "READY=1")
	require.Equal(t, Notified{Status: "reading", MainPID: 7, At: now}, is)
	is = said(is, "STOPPING=1\nSTATUS=")
	require.Equal(t, Notified{Stopping: true, MainPID: 7, At: now}, is)
	require.Equal(t, Notified{Dropped: 3}, Notified{}.After(Heard{Dropped: 3}, now), "nothing of its own was heard")
}
