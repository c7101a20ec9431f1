// Black ink on white paper, by mouse, pen or finger. The drawing, a PNG as a data URL, is the component's value.
const canvas = element.querySelector("canvas");
const ink = canvas.getContext("2d");
let pen = null; // the pointer that draws, and where it was last
let waiting = false;

function clear() {
  ink.fillStyle = "white";
  ink.fillRect(0, 0, canvas.width, canvas.height);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

function draw(event) {
  if (pen?.pointer !== event.pointerId) return;
  const to = place(event);
  ink.beginPath();
  ink.moveTo(...pen.at);
  ink.lineTo(...to);
  ink.stroke();
  pen.at = to;
  tell();
}

// Ten times a second at most, while the drawing changes.
function tell() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    props.value = canvas.toDataURL();
    trigger("input");
  }, 100);
}

canvas.addEventListener("pointerdown", (event) => {
  if (pen || event.button !== 0) return;
  pen = { pointer: event.pointerId, at: place(event) };
  canvas.setPointerCapture(event.pointerId);
  draw(event); // a dot
});
canvas.addEventListener("pointermove", draw);
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, (event) => {
    if (pen?.pointer === event.pointerId) pen = null;
  });
}
element.querySelector("button").addEventListener("click", () => {
  clear();
  tell();
});

// A photograph may be dropped anywhere on the page: the button for it gets it.
window.addEventListener("dragover", (event) => event.preventDefault());
window.addEventListener("drop", (event) => {
  if (event.defaultPrevented) return; // it has it
  event.preventDefault();
  const field = document.querySelector("input[type=file]");
  field.files = event.dataTransfer.files;
  field.dispatchEvent(new Event("change", { bubbles: true }));
});

clear();
ink.lineWidth = canvas.width / 13; // MNIST's digits are 20 pixels long, their strokes about 2
ink.lineCap = ink.lineJoin = "round";
