
// Tables of types of defects: the title of a column sorts by it. A cell's data-value is its number, empty if unknown.
for (const table of document.querySelectorAll(".types table")) {
  const [body] = table.tBodies;
  const titles = [...table.tHead.rows[0].cells];
  for (const [column, title] of titles.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...title.childNodes);
    title.append(button);
    const value = (row) => row.cells[column].dataset.value;
    button.addEventListener("click", () => {
      const order = title.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      const sign = order === "ascending" ? 1 : -1;
      for (const other of titles) other.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", order);
      const compare = (a, b) => {
        if (value(a) === undefined) return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
        if (value(a) === "" || value(b) === "") return (value(a) === "") - (value(b) === ""); // unknown last, either way
        return sign * (Number(value(a)) - Number(value(b)));
      };
      body.append(...[...body.rows].sort(compare));
    });
  }
}
