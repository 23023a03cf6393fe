package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// word is the last part of an enum's name, as people write it:
// SERVICE_STATE_RUNNING with the prefix SERVICE_STATE_ is "running".
func word(e fmt.Stringer, prefix string) string {
	return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(e.String(), prefix)), "_", " ")
}

func stateWord(s gladsheimv1.ServiceState) string { return word(s, "SERVICE_STATE_") }

func healthWord(h gladsheimv1.HealthStatus) string { return word(h, "HEALTH_STATUS_") }

// span is a length of time in its two largest units.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(0, d); {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm %ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh %dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd %dh", d/day, d%day/time.Hour)
}

func ago(now, then time.Time) string {
	if then.After(now) {
		return "in " + span(then.Sub(now))
	}
	return span(now.Sub(then)) + " ago"
}

// moment is a time in the user's zone.
func moment(t time.Time) string { return t.Local().Format("Mon 2006-01-02 15:04:05 MST") }

// clock is the time of day.
func clock(t time.Time) string { return t.Local().Format("15:04:05") }

// size is an amount of memory in three digits or so; unlimited is "max".
func size(bytes float64) string {
	if math.IsInf(bytes, 1) || bytes >= math.MaxUint64 {
		return "max"
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	i := 0
	for ; bytes >= 1024 && i < len(units)-1; i++ {
		bytes /= 1024
	}
	if i == 0 {
		return strconv.FormatFloat(bytes, 'f', 0, 64) + " B"
	}
	text := strconv.FormatFloat(bytes, 'f', 1, 64)
	return strings.TrimSuffix(text, ".0") + " " + units[i]
}

func percent(p float64) string {
	if math.IsInf(p, 1) {
		return "max"
	}
	return strings.TrimSuffix(strconv.FormatFloat(p, 'f', 1, 64), ".0") + "%"
}

// limit is the value of a LimitReport in the unit of its name; "" when absent.
func limit(name string, value *float64) string {
	if value == nil {
		return ""
	}
	r, err := service.ParseResource(name)
	switch {
	case math.IsInf(*value, 1):
		return "max"
	case err != nil:
	case r.Unit() == service.Percent:
		return percent(*value)
	case r.Unit() == service.Bytes:
		return service.FormatSize(uint64(*value))
	case r.Unit() == service.YesNo:
		return strconv.FormatBool(*value != 0)
	}
	return strconv.FormatFloat(*value, 'f', -1, 64)
}

func number[T int32 | uint32 | uint64](n T) string { return strconv.FormatUint(uint64(n), 10) }

// maybe formats what may be absent.
func maybe[T any](v *T, format func(T) string) string {
	if v == nil {
		return ""
	}
	return format(*v)
}

func bytesOf(n uint64) string { return size(float64(n)) }

func whole(v float64) string { return strconv.FormatFloat(v, 'f', 0, 64) }

// usecOf is an amount of time that something took.
func usecOf(n uint64) string {
	d := time.Duration(min(n, math.MaxInt64/1000)) * time.Microsecond
	switch {
	case d == 0:
		return "0s"
	case d >= time.Second && d < time.Minute:
		return strings.TrimSuffix(strconv.FormatFloat(d.Seconds(), 'f', 1, 64), ".0") + "s"
	}
	return span(d)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func fromMillis(ms int64) time.Time { return time.UnixMilli(ms) }
