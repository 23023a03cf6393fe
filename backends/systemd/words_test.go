package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/units"
)

func TestCellNames(t *testing.T) {
	for scope, want := range map[string]string{
		"gladsheim-web-0000000b.scope":        `gladsheim-web\x2d0000000b.slice`,
		"gladsheim-my-web_2-00000001.scope":   `gladsheim-my\x2dweb_2\x2d00000001.slice`,
		"gladsheim-a-b-c-0123456789abc.scope": `gladsheim-a\x2db\x2dc\x2d0123456789abc.slice`,
	} {
		require.Equal(t, want, cellOf(scope))
	}
}

func TestEveryScopeAndCellIsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := service.MustName(rapid.StringMatching(`[a-z][a-z0-9]{0,9}([-_][a-z0-9]{1,9}){0,4}`).Draw(t, "name"))
		incarnation := rapid.Uint64().Draw(t, "incarnation")
		scope := units.Scope(name, incarnation)
		for _, unit := range []string{scope, cellOf(scope)} {
			gotName, gotIncarnation, ok := parseUnit(unit)
			if !ok || gotName != name || gotIncarnation != incarnation {
				t.Fatalf("%s is read as %s, %d, %v", unit, gotName, gotIncarnation, ok)
			}
			if len(unit) > 255 {
				t.Fatalf("%s is longer than systemd takes", unit)
			}
		}
	})
}

func TestUnitsOfOthers(t *testing.T) {
	for _, unit := range []string{
		"", ".slice", "gladsheim.slice", units.AnchorScope, "gladsheim-web.slice", "gladsheim-web-0000000b.slice",
		`gladsheim-web\x2d0000000b.scope`, `gladsheim-web\x2d0000000B.slice`, `gladsheim-web\x2db.slice`, "dbus.service", "user-1000.slice",
		`gladsheim-web\x2d0000000b.slice.slice`, `gladsheim-\x77eb\x2d0000000b.slice`,
	} {
		_, _, ok := parseUnit(unit)
		require.False(t, ok, unit)
	}
}

func TestRounded(t *testing.T) {
	got := rounded(service.Limits{
		service.MemoryMax: service.Of(80_000_000), service.MemoryHigh: service.Of(service.Unlimited),
		service.CPUMax: service.Of(20*service.UsecPerPercent + 1), service.PidsMax: service.Of(7),
	})
	require.Equal(t, service.Of(79_998_976), got[service.MemoryMax])
	require.Equal(t, service.Of(service.Unlimited), got[service.MemoryHigh])
	require.Equal(t, service.Of(21*service.UsecPerPercent), got[service.CPUMax])
	require.Equal(t, service.Of(7), got[service.PidsMax])
	require.False(t, got[service.IOWeight].Set)
	require.Equal(t, got, rounded(got))
}

func TestJobEndsReachOnlyWhoWaits(t *testing.T) {
	var ends jobEnds
	one, forgetOne := ends.expect("a.scope")
	other, forgetOther := ends.expect("a.scope")
	for _, unit := range []string{"b.scope", "a.scope"} {
		ends.DeliverSignal(managerInterface, jobRemoved, &dbus.Signal{Body: []any{uint32(7), dbus.ObjectPath("/job/7"), unit, "done"}})
	}
	ends.DeliverSignal(managerInterface, jobRemoved, &dbus.Signal{Body: []any{"of another form"}})
	ends.DeliverSignal(managerInterface, "UnitNew", &dbus.Signal{Body: []any{"a.scope", dbus.ObjectPath("/a")}})
	for _, c := range []<-chan jobEnd{one, other} {
		require.Len(t, c, 1)
		require.Equal(t, jobEnd{"/job/7", "done"}, <-c)
	}
	forgetOne()
	ends.deliver("a.scope", jobEnd{result: "canceled"})
	require.Empty(t, one)
	for range 100 { // who does not read holds up nobody
		ends.deliver("a.scope", jobEnd{result: "canceled"})
	}
	require.Equal(t, "canceled", (<-other).result)
	forgetOther()
	require.Empty(t, ends.waiting)
}

func TestLostAnswers(t *testing.T) {
	for err, lost := range map[error]bool{
		io.EOF: true, dbus.ErrClosed: true, fmt.Errorf("read: %w", syscall.ECONNRESET): true,
		context.DeadlineExceeded: false, errors.New("no"): false,
	} {
		require.Equal(t, lost, lostAnswer(err), "%v", err)
	}
	require.False(t, lostAnswer(dbus.Error{Name: unitExists, Body: []any{"Unit a.scope was already loaded."}}))
	require.True(t, lostAnswer(dbus.Error{Name: "org.freedesktop.DBus.Error.NoReply"}))
	require.True(t, lostAnswer(fmt.Errorf("call: %w", &dbus.Error{Name: "org.freedesktop.DBus.Error.ServiceUnknown"})))
}

func TestFailures(t *testing.T) {
	web := service.MustName("web")
	for _, c := range []struct {
		err    error
		kind   service.Kind
		reason service.Reason
		text   string
	}{
		{fmt.Errorf("make it: %w", context.DeadlineExceeded), service.Timeout, service.ReasonBackendTimeout, "cannot start web: make it: context deadline exceeded"},
		{context.Canceled, service.Cancelled, "CANCELLED", "cannot start web: context canceled"},
		{dbus.Error{Name: "org.freedesktop.DBus.Error.AccessDenied", Body: []any{"Access denied"}}, service.Denied, "DENIED", "cannot start web: Access denied"},
		{io.EOF, service.HostUnavailable, "HOST_UNAVAILABLE", "cannot start web: EOF"},
		{&service.Error{Op: "signal", Kind: service.NotRunning, Err: io.EOF}, service.NotRunning, "NOT_RUNNING", "cannot signal web: EOF"},
	} {
		err := failure("start", web, c.err)
		require.Equal(t, c.kind, service.KindOf(err))
		require.Equal(t, c.reason, service.ReasonOf(err))
		require.EqualError(t, err, c.text)
	}
}
