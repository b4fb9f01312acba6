from fgvc_core.drawing.tables import folding

PAGE = """<p>before</p><table>
  <thead><tr><th scope="col">Model</th>
  <th scope="col" class="wide">Top-1<span aria-hidden="true">0</span></th></tr>
  </thead>
  <tbody><tr class="best"><th scope="row">a &lt;td b</th><td class="wide">1</td></tr>
  <tr><td>x</td><td>y</td><td>beyond</td></tr></tbody></table>"""


def test_each_cell_has_its_columns_name_and_each_element_its_role():
    found = folding(PAGE)
    assert '<td role="cell" data-label="Top-1" class="wide">1</td>' in found
    assert '<th scope="row" role="rowheader" data-label="Model">a &lt;td b</th>' in found
    assert '<td role="cell" data-label="Model">x</td>' in found
    assert '<td role="cell" data-label="">beyond</td>' in found
    assert '<tr role="row" class="best">' in found
    assert found.startswith('<p>before</p><table role="table">')


def test_a_page_without_tables_stays_as_it_is():
    assert folding("<p>no <td here</p>") == "<p>no <td here</p>"
