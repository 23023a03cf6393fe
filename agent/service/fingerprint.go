package service

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
)

// How much of what a service said last its fingerprint is made of.
const (
	printedLines = 10
	printedBytes = 512 // of each
)

// What differs from one end to the next although they are the same.
var (
	steering = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)
	calendar = regexp.MustCompile(`\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun|Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b`)
	hexadec  = regexp.MustCompile(`\b0[xX][0-9a-fA-F]+\b|\b[0-9a-fA-F]*[0-9][0-9a-fA-F]*\b|[0-9]+`)
	together = regexp.MustCompile(`#([-:.,/+TZ ]*#)+Z?`) // dates, times, versions and lists
)

// Fingerprint is the same for ends that are: of the verdict, the code or signal, and the
// latest lines without what changes from run to run, such as times, numbers and
// addresses. Lines that repeat the one before count once.
func Fingerprint(v Verdict, x Exit, lines []string) string {
	hash := sha256.New()
	fmt.Fprintf(hash, "%v\n%d %d %s\n", v, x.Code, x.Signal, x.Unknown)
	for _, line := range plainLines(lines) {
		fmt.Fprintln(hash, line)
	}
	return hex.EncodeToString(hash.Sum(nil)[:8])
}

func plainLines(lines []string) (plain []string) {
	for _, line := range lines {
		line = plainLine(line[:min(len(line), printedBytes)])
		if line == "" || len(plain) > 0 && plain[len(plain)-1] == line {
			continue
		}
		plain = append(plain, line)
	}
	return plain[max(0, len(plain)-printedLines):]
}

func plainLine(line string) string {
	line = steering.ReplaceAllString(line, "")
	line = calendar.ReplaceAllString(line, "#")
	line = hexadec.ReplaceAllString(line, "#")
	line = together.ReplaceAllString(line, "#")
	return strings.Join(strings.Fields(line), " ")
}

// OfItself tells whether an end of this kind is the service's own doing, so that one like
// another says that there will be a third. A launch that failed is not: what can not be
// helped by another is given up at once, and the rest is the host's.
func (v Verdict) OfItself() bool {
	switch v {
	case VerdictCrash, VerdictOwnOOM, VerdictUnhealthy, VerdictStartupTime, VerdictExceeded, VerdictWatchdog, VerdictHookFailed:
		return true
	}
	return false
}

// OOM tells whether memory ran out.
func (v Verdict) OOM() bool {
	return v == VerdictOwnOOM || v == VerdictAncestorOOM || v == VerdictHostOOM
}
