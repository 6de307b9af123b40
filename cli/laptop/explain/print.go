package explain

import (
	"fmt"
	"io"
	"strings"
)

// Print writes the explanation for people.
func (x Explanation) Print(w io.Writer) error {
	fmt.Fprintf(w, "%s → %s: %s\n", x.From, x.To, x.Verdict)
	if x.Error != "" {
		fmt.Fprintf(w, "  %s\n", x.Error)
	}
	if x.L7 != "" {
		fmt.Fprintf(w, "  the waypoint %s has rules of its own, which decide request by request\n", x.L7)
	}
	if l := x.Lookup; l != nil {
		fmt.Fprintf(w, "\nlooking up %s in the pod\n", l.Host)
		for i, a := range l.Addresses {
			used := ""
			if i == 0 && len(l.Addresses) > 1 {
				used = "  (taken here)"
			}
			fmt.Fprintf(w, "  %s%s\n", a, used)
		}
		if l.Error != "" {
			fmt.Fprintf(w, "  %s\n", l.Error)
		}
	}
	told := map[string]string{} // what has been printed, and under which title
	for _, h := range x.Hops {
		first, again := told[h.essence()]
		if !again {
			told[h.essence()] = h.Title
		}
		h.print(w, first)
	}
	if len(x.Change) > 0 {
		fmt.Fprintf(w, "\nwhat would change the answer\n")
	}
	for _, c := range x.Change {
		fmt.Fprintf(w, "  - %s\n", c)
	}
	return nil
}

// essence is what two endpoints of a service have in common when the same is
// decided about them for the same reasons.
func (h Hop) essence() string {
	title, _, _ := strings.Cut(h.Title, "/")
	text := title + h.Verdict
	for _, s := range h.Steps {
		text += s.What + strings.Join(s.Detail, "")
	}
	return text
}

// print prints a hop, or only that it is like the one with that title.
func (h Hop) print(w io.Writer, like string) {
	fmt.Fprintf(w, "\n%s", h.Title)
	if h.Node != "" {
		fmt.Fprintf(w, ", on %s", h.Node)
	}
	if h.Share < 1 {
		fmt.Fprintf(w, ", %.0f %% of the connections", h.Share*100)
	}
	if like != "" {
		fmt.Fprintf(w, ": %s, for the same reasons\n", h.Verdict)
		return
	}
	fmt.Fprintf(w, ": %s\n", h.Verdict)
	for _, s := range h.Steps {
		subject := s.What
		if s.Subject != "" {
			subject += " " + s.Subject
		}
		fmt.Fprintf(w, "  %s: %s\n", subject, s.Result)
		for _, d := range s.Detail {
			fmt.Fprintf(w, "      %s\n", d)
		}
	}
}
