package launch

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"

	"github.com/gladsheim/gladsheim/agent/service"
)

// identity is whom a child becomes.
type identity struct {
	change   bool // it is another one than ours
	uid, gid uint32
	groups   []uint32 // supplementary, sorted
}

// Failures of identify for which there is a reason of their own.
var (
	errUnknownUser  = errors.New("unknown user")
	errUnknownGroup = errors.New("unknown group")
)

// identify finds the IDs behind the names or numbers of a definition: ""
// stands for the agent's own user, and for that user's own group. The groups
// are those that initgroups(3) would set.
func identify(userName, groupName string) (identity, error) {
	who, entry, err := findUser(userName)
	if err != nil {
		return identity{}, err
	}
	if groupName != "" {
		if who.gid, err = findGroup(groupName); err != nil {
			return identity{}, err
		}
	} else if entry == nil && userName != "" {
		return identity{}, fmt.Errorf("%w: %q has no entry in the user database, so a group must be given too", errUnknownUser, userName)
	}
	who.groups = []uint32{who.gid}
	if entry != nil {
		ids, err := entry.GroupIds()
		if err != nil {
			return identity{}, fmt.Errorf("cannot list the groups of user %s: %w", entry.Username, err)
		}
		for _, id := range ids {
			gid, err := parseID(id)
			if err != nil {
				return identity{}, fmt.Errorf("cannot list the groups of user %s: %w", entry.Username, err)
			}
			// A group that was asked for takes the place of the user's own.
			if id != entry.Gid {
				who.groups = append(who.groups, gid)
			}
		}
	}
	slices.Sort(who.groups)
	who.groups = slices.Compact(who.groups)
	who.change = !isOurs(who)
	return who, nil
}

// findUser finds a user by name or number; the entry is nil for a number that
// the user database does not hold.
func findUser(name string) (identity, *user.User, error) {
	var entry *user.User
	var err error
	uid, numeric := uint32(os.Geteuid()), true
	if name != "" {
		uid, err = parseID(name)
		numeric = err == nil
	}
	if numeric {
		entry, err = user.LookupId(strconv.FormatUint(uint64(uid), 10))
	} else {
		entry, err = user.Lookup(name)
	}
	switch {
	case err == nil:
	case numeric && isUnknown(err):
		return identity{uid: uid, gid: uint32(os.Getegid())}, nil, nil
	case isUnknown(err):
		return identity{}, nil, fmt.Errorf("%w %q", errUnknownUser, name)
	default:
		return identity{}, nil, fmt.Errorf("cannot look up user %q: %w", name, err)
	}
	who := identity{}
	if who.uid, err = parseID(entry.Uid); err != nil {
		return identity{}, nil, fmt.Errorf("cannot look up user %q: %w", name, err)
	}
	if who.gid, err = parseID(entry.Gid); err != nil {
		return identity{}, nil, fmt.Errorf("cannot look up user %q: %w", name, err)
	}
	return who, entry, nil
}

func findGroup(name string) (uint32, error) {
	if gid, err := parseID(name); err == nil {
		return gid, nil
	}
	group, err := user.LookupGroup(name)
	if isUnknown(err) {
		return 0, fmt.Errorf("%w %q", errUnknownGroup, name)
	}
	if err != nil {
		return 0, fmt.Errorf("cannot look up group %q: %w", name, err)
	}
	gid, err := parseID(group.Gid)
	if err != nil {
		return 0, fmt.Errorf("cannot look up group %q: %w", name, err)
	}
	return gid, nil
}

func isUnknown(err error) bool {
	var (
		name    user.UnknownUserError
		id      user.UnknownUserIdError
		group   user.UnknownGroupError
		groupID user.UnknownGroupIdError
	)
	return errors.As(err, &name) || errors.As(err, &id) || errors.As(err, &group) || errors.As(err, &groupID)
}

// parseID reads a number of a user or group: decimal digits alone, so that no
// other spelling ("+0", "0x0", " 0") becomes root. The highest number is the
// kernel's "leave it as it is" and is refused.
func parseID(text string) (uint32, error) {
	for i := range len(text) {
		if text[i] < '0' || text[i] > '9' {
			return 0, fmt.Errorf("%q is not a number", text)
		}
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, fmt.Errorf("%q is not the number of a user or group", text)
	}
	return uint32(n), nil
}

// isOurs tells whether who is what this process is already, so that nothing
// needs to be changed. Other than root we could not change the groups anyhow,
// and those that we have are our user's.
func isOurs(who identity) bool {
	if uint32(os.Getuid()) != who.uid || uint32(os.Geteuid()) != who.uid ||
		uint32(os.Getgid()) != who.gid || uint32(os.Getegid()) != who.gid {
		return false
	}
	if who.uid != 0 {
		return true
	}
	ours, err := syscall.Getgroups()
	if err != nil {
		return false
	}
	slices.Sort(ours)
	return slices.EqualFunc(slices.Compact(ours), who.groups, func(a int, b uint32) bool { return uint32(a) == b })
}

func identityFailure(name service.Name, err error) error {
	switch {
	case errors.Is(err, errUnknownUser):
		return failure(name, service.ReasonUnknownUser, true, err)
	case errors.Is(err, errUnknownGroup):
		return failure(name, service.ReasonUnknownGroup, true, err)
	}
	return resourceFailure(name, err)
}
