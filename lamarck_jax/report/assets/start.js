// Shows the content, and again whenever the server has new content.

let view = null;

function show(data) {
  const root = document.getElementById('main');
  if (data.kind === 'study') {
    showStudy(data, root);
    return;
  }
  const before = view;
  view = new Search(data, root);
  if (before) {
    for (const field of ['sort', 'page', 'axis']) view[field] = before[field];
    if (before.chosen) [view.selected, view.chosen] = [before.selected, true];
  }
  view.show();
}

const first = JSON.parse(document.getElementById('data').textContent);
show(first);

if (first.refresh_seconds) {
  let known = JSON.stringify(first);
  setInterval(async () => {
    try {
      const text = await (await fetch('data.json')).text();
      if (text !== known) {
        known = text;
        show(JSON.parse(text));
      }
    } catch {
      document.getElementById('subtitle').textContent += ' (the server does not answer)';
    }
  }, 1000 * first.refresh_seconds);
}
