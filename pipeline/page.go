package pipeline

// Page is one page of a job's failures, as the API's errors call returns it:
// https://developer.fullstory.com/server/users/get-batch-import-errors/
type Page struct {
	// Token asks for this page; empty for the first one.
	Token string
	// Next asks for the page that follows; empty on the last one.
	Next string
	// TotalRecords counts the failures of the whole job, -1 where the page
	// does not say.
	TotalRecords int64
	// Results holds the failures in the API's order. A page may have none and
	// still have a next one.
	Results []Result
}

// Result is one failure as it stands in a page. Its slices point into the
// page's body: nothing is copied or decoded before it is needed.
type Result struct {
	// Raw is the whole result as received.
	Raw []byte
	// Object tells whether the result is a JSON object at all.
	Object bool
	// TooDeep tells that it is nested deeper than can be read: nothing is known
	// of it but where it ends.
	TooDeep bool
	// Code and Message are JSON string literals, quotes included; nil where
	// the member is missing or no string.
	Code, Message []byte
	// Subject is the import request that failed, the user or the event, a JSON
	// object; nil where there is none.
	Subject []byte
	// Shared is what the events of the import share, a JSON value; nil where
	// there is none, and for users.
	Shared []byte
	// UID is the uid of the user, or of the event's user, a JSON string
	// literal; nil where there is none.
	UID []byte
}
