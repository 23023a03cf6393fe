package timetable

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gladsheim/gladsheim/agent/service"
)

func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		schedule    service.Schedule
		field, want string
	}{
		{service.Schedule{Cron: "* * * *"}, "schedule.cron", "expected exactly 5 fields, found 4"},
		{service.Schedule{Cron: "0 0 * * * *"}, "schedule.cron", "expected exactly 5 fields, found 6"},
		{service.Schedule{Cron: "60 * * * *"}, "schedule.cron", "end of range (60) above maximum (59)"},
		{service.Schedule{Cron: "0 0 * foo *"}, "schedule.cron", `failed to parse int from foo`},
		{service.Schedule{Cron: "@sometimes"}, "schedule.cron", "unrecognized descriptor"},
		{service.Schedule{Cron: "@every 5m"}, "schedule.cron", "write schedule.every"},
		{service.Schedule{Cron: "TZ=UTC 0 0 * * *"}, "schedule.cron", "a key of its own"},
		{service.Schedule{Cron: "CRON_TZ="}, "schedule.cron", "a key of its own"},
		{service.Schedule{Cron: "0 0 30 2 *"}, "schedule.cron", "never comes"},
		{service.Schedule{Cron: "0 0 31 4,6,9,11 *"}, "schedule.cron", "never comes"},
		{service.Schedule{Cron: "0 0 * * *", Timezone: "Midgard"}, "schedule.timezone", `"Midgard" is not the name of a time zone`},
		{service.Schedule{Cron: "0 0 * * *", Timezone: "Local"}, "schedule.timezone", "is not the name"},
		{service.Schedule{Cron: "0 0 * * *", Timezone: "../../etc/passwd"}, "schedule.timezone", "is not the name"},
	} {
		_, fault := Parse(tt.schedule)
		require.NotNil(t, fault, "%+v", tt.schedule)
		require.Equal(t, tt.field, fault.Field)
		require.Contains(t, fault.Message, tt.want)
	}
	for _, good := range []string{"0 0 29 2 *", "*/5 * * * *", "30 3 * jan-mar mon,FRI", "@daily", "0 12 1-7 * 1"} {
		_, fault := Parse(service.Schedule{Cron: good})
		require.Nil(t, fault, good)
	}
}

func cronTable(t *testing.T, text, zone string) Table {
	t.Helper()
	table, fault := Parse(service.Schedule{Cron: text, Timezone: zone})
	require.Nil(t, fault)
	return table
}

// times are the next n times of a table after one.
func times(table Table, after string, n int) (out []string) {
	at, _ := time.Parse(time.RFC3339, after)
	for range n {
		at = table.Next(service.Mark{Wall: at}, Now{Wall: at})
		out = append(out, at.UTC().Format("01-02T15:04"))
	}
	return out
}

func TestCronIsByTheWallOfItsZone(t *testing.T) {
	require.Equal(t, []string{"01-02T02:30", "01-03T02:30"}, times(cronTable(t, "30 3 * * *", "Europe/Stockholm"), "2026-01-01T12:00:00Z", 2))
	require.Equal(t, []string{"07-02T01:30", "07-03T01:30"}, times(cronTable(t, "30 3 * * *", "Europe/Stockholm"), "2026-07-01T12:00:00Z", 2))
	require.Equal(t, []string{"01-01T12:15", "01-01T12:30"}, times(cronTable(t, "*/15 * * * *", "UTC"), "2026-01-01T12:00:00Z", 2))
}

// What the documentation says of the days on which clocks change: a time that there is
// not does not come, one that there is twice comes twice, and so do the minutes of an hour.
func TestDaylightSaving(t *testing.T) {
	stockholm := "Europe/Stockholm" // 2026: 03-29 01:00 UTC, 10-25 01:00 UTC
	require.Equal(t, []string{"03-28T01:30", "03-30T00:30"}, times(cronTable(t, "30 2 * * *", stockholm), "2026-03-28T00:00:00Z", 2))
	require.Equal(t, []string{"03-29T00:30", "03-29T01:30", "03-29T02:30"}, times(cronTable(t, "30 * * * *", stockholm), "2026-03-29T00:00:00Z", 3))
	require.Equal(t, []string{"10-25T00:30", "10-25T01:30", "10-26T01:30"}, times(cronTable(t, "30 2 * * *", stockholm), "2026-10-24T12:00:00Z", 3))
	require.Equal(t, []string{"03-28T03:00", "03-29T02:00"}, times(cronTable(t, "0 4 * * *", stockholm), "2026-03-28T00:00:00Z", 2))
}

func TestEveryCountsTimeSinceBoot(t *testing.T) {
	table, fault := Parse(service.Schedule{Every: time.Hour})
	require.Nil(t, fault)
	began := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	m := service.Mark{Wall: began, SinceBoot: 10 * time.Hour, Boot: "a"}
	in := func(m service.Mark, now Now) time.Duration { return table.Next(table.Of(m, now), now).Sub(now.Wall) }

	require.Equal(t, 40*time.Minute, in(m, Now{began.Add(20 * time.Minute), 10*time.Hour + 20*time.Minute, "a"}))
	require.Equal(t, 40*time.Minute, in(m, Now{began.Add(-365 * 24 * time.Hour), 10*time.Hour + 20*time.Minute, "a"}), "whatever the wall says")
	require.Equal(t, -time.Hour, in(m, Now{began, 12 * time.Hour, "a"}))
	require.Equal(t, 30*time.Minute, in(m, Now{began.Add(30 * time.Minute), time.Minute, "b"}), "after a reboot by the wall")
	require.Equal(t, time.Hour, in(m, Now{began.Add(-time.Hour), time.Minute, "b"}), "of a clock that was set back nothing is known")

	now := Now{began.Add(150 * time.Minute), 12*time.Hour + 30*time.Minute, "a"}
	require.Equal(t, 30*time.Minute, in(table.Pass(m, now), now), "what is passed over does not shift what follows")
}

// What is late by less than the grace was not missed, also where older times were.
func TestWhatIsALittleLateIsNotPassedOver(t *testing.T) {
	at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	m := service.Mark{Wall: at, SinceBoot: time.Hour, Boot: "a"}
	now := Now{at.Add(2*time.Minute + 21*time.Second), time.Hour + 2*time.Minute + 21*time.Second, "a"}
	minutely := cronTable(t, "* * * * *", "UTC")
	passed := minutely.Pass(m, now)
	require.Equal(t, at.Add(2*time.Minute), minutely.Next(passed, now).UTC())
	require.False(t, minutely.Again(at.Add(time.Minute), passed))
	require.True(t, minutely.Again(at, passed))

	often, fault := Parse(service.Schedule{Every: 20 * time.Second})
	require.Nil(t, fault)
	passed = often.Pass(m, now)
	require.Equal(t, at.Add(140*time.Second), often.Next(passed, now))
	require.True(t, often.Again(at.Add(20*time.Second), passed))
}

func TestAClockThatIsSetBack(t *testing.T) {
	table := cronTable(t, "0 * * * *", "UTC")
	at := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	m := service.Mark{Wall: at}
	back := Now{Wall: at.Add(-time.Second)}
	require.Equal(t, at.Add(time.Hour), table.Next(table.Of(m, back), back), "a little: what was is over")
	back.Wall = at.Add(-3 * time.Hour)
	require.Equal(t, at.Add(-2*time.Hour), table.Next(table.Of(m, back), back))
}

// crontab(5) knows Sunday as 0 and as 7.
func TestSundayIsSevenAsWell(t *testing.T) {
	for _, days := range []string{"7", "0", "sun"} { // 2026-01-04 is one
		require.Equal(t, []string{"01-04T00:00", "01-11T00:00"}, times(cronTable(t, "0 0 * * "+days, "UTC"), "2026-01-01T12:00:00Z", 2), days)
	}
	require.Equal(t, []string{"01-02T00:00", "01-03T00:00", "01-04T00:00", "01-09T00:00"}, times(cronTable(t, "0 0 * * 5-7", "UTC"), "2026-01-01T12:00:00Z", 4))
	_, fault := Parse(service.Schedule{Cron: "0 0 * * 8"})
	require.NotNil(t, fault)
}
